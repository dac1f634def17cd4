"""Rows of an answer read the same while it is made and after, and keep nothing of the engine's when it has ended."""

from __future__ import annotations

import numpy as np
import pytest

from introspect.types import HeadRow
from introspect_service.compact import DTYPES, HEAD_FIELDS, compact_row
from introspect_service.head_rows import HeadRows

LAYERS, HEADS, KV_HEADS = 3, 4, 2


def made(count, seed=0):
    """Rows as the engine tells them: views of what a whole batch shares."""
    rng = np.random.default_rng(seed)

    def values(name):
        shape = {"mass": (LAYERS, HEADS, 6), "retained": (LAYERS, KV_HEADS, 6)}.get(name, (LAYERS, HEADS))
        shared = rng.integers(-1, 90, (8, *shape)) if DTYPES[name] is np.int32 else rng.normal(size=(8, *shape)) * 40
        shared = shared.astype(np.int32 if DTYPES[name] is np.int32 else np.float32)
        if name == "image_entropy":
            shared[:, 0, 0] = np.nan
        return shared[5]

    return [HeadRow.of({name: values(name) for name in HEAD_FIELDS}) for _ in range(count)]


def same(row, heads):
    """Whether a row is what `compact_row` makes of `heads`, number by number and in its precision."""
    expected = compact_row(heads)
    assert list(row) == list(expected)
    for name, array in expected.items():
        assert row[name].dtype == array.dtype == DTYPES[name]
        np.testing.assert_array_equal(row[name], array)
    return True


@pytest.mark.parametrize("ended", [False, True])
def test_rows_read_the_same_before_and_after_the_end(ended):
    engine, rows = made(5), HeadRows()
    for heads in engine:
        rows.add(heads)
    before = rows.bytes
    if ended:
        rows.settle()
        rows.settle()  # again, as an answer may fail behind its end
    assert len(rows) == len(list(rows)) == 5
    assert all(same(row, heads) for row, heads in zip(rows, engine, strict=True))
    assert same(rows[-1], engine[4])
    assert [same(row, heads) for row, heads in zip(rows[1:3], engine[1:3], strict=True)] == [True, True]
    assert rows.bytes == before == sum(array.nbytes for heads in engine for array in compact_row(heads).values())
    with pytest.raises(IndexError):
        rows[5]


def test_nothing_of_the_engine_s_is_kept_behind_the_end():
    engine, rows = made(2), HeadRows()
    for heads in engine:
        rows.add(heads)
    rows.settle()
    assert not any(np.shares_memory(row[name], getattr(heads, name)) for row, heads in zip(rows, engine, strict=True) for name in DTYPES)


def test_none_at_all():
    rows = HeadRows()
    rows.settle()
    assert (len(rows), list(rows), rows.bytes) == (0, [], 0)
    with pytest.raises(IndexError):
        rows[0]
