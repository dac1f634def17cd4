"""A row's statistics are the kernels', by name and by place, and stay in the four arrays that it was made with."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from introspect.decoding import HeadTensors, head_rows
from introspect.types import HeadRow
from introspect_kernels import INDICES, REALS, HeadStats

LAYERS, HEADS, KV_HEADS = 3, 4, 2


def tensors(batch: int) -> HeadTensors:
    """A lane's statistics, every number another."""
    count = torch.arange(batch * LAYERS * HEADS * 11, dtype=torch.float32)
    mass = torch.arange(batch * LAYERS * HEADS * 6, dtype=torch.float32).view(batch, LAYERS, HEADS, 6) + 0.5
    kept = torch.arange(batch * LAYERS * KV_HEADS * 6, dtype=torch.int32).view(batch, LAYERS, KV_HEADS, 6)
    indices = torch.arange(batch * 2 * LAYERS * HEADS, dtype=torch.int32).view(batch, 2, LAYERS, HEADS)
    return HeadTensors(count.view(batch, 11, LAYERS, HEADS), indices, mass, kept)


def test_each_statistic_is_where_the_kernels_put_it() -> None:
    found = tensors(3)
    rows = head_rows(found)
    assert len(rows) == 3
    for number, row in enumerate(rows):
        for block, names in ((row.reals, REALS), (row.indices, INDICES)):
            assert len(block) == len(names)
            for place, name in enumerate(names):
                view = getattr(row, name)
                assert np.shares_memory(view, block[place])
                np.testing.assert_array_equal(view, block[place], err_msg=name)
        for block, tensor in zip((row.reals, row.indices, row.mass, row.retained), found, strict=True):
            assert block.dtype == tensor.numpy().dtype
            assert np.shares_memory(block, tensor[number].numpy())
            np.testing.assert_array_equal(block, tensor[number].numpy())


def test_a_row_of_named_arrays_is_the_row_they_were_read_from() -> None:
    whole = HeadRow(*(tensor.numpy() for tensor in tensors(3)))
    for row in (whole, whole.rows()[1]):  # of several queries, and of one
        made = HeadRow.of({name: getattr(row, name) for name in reversed(HeadStats._fields)})
        for name in HeadStats._fields:
            assert getattr(made, name).shape == getattr(row, name).shape
            np.testing.assert_array_equal(getattr(made, name), getattr(row, name), err_msg=name)


def test_joined_rows_come_apart_as_they_were_and_share_nothing() -> None:
    rows = head_rows(tensors(4))[1:]
    whole = HeadRow.joined(rows)
    assert whole.entropy.shape == (3, LAYERS, HEADS)
    for one, other in zip(whole.rows(), rows, strict=True):
        for block in fields(HeadRow):
            np.testing.assert_array_equal(getattr(one, block.name), getattr(other, block.name))
            assert not np.shares_memory(getattr(one, block.name), getattr(other, block.name))


def test_stored_precisions_become_the_engine_s() -> None:
    row = head_rows(tensors(1))[0]
    stored = {name: getattr(row, name) for name in HeadStats._fields}
    made = HeadRow.of(stored | {"entropy": row.entropy.astype(np.float16), "mass": row.mass.astype(np.float16)})
    assert (made.reals.dtype, made.indices.dtype, made.mass.dtype, made.retained.dtype) == (np.float32, np.int32, np.float32, np.int32)
    np.testing.assert_array_equal(made.mass, row.mass)
    with pytest.raises(TypeError, match="same_kind"):
        HeadRow.of(stored | {"argmax_position": row.entropy})


def test_a_statistic_that_is_missing_or_not_known_is_named() -> None:
    row = head_rows(tensors(1))[0]
    arrays = {name: getattr(row, name) for name in HeadStats._fields}
    del arrays["sum_sq"], arrays["retained"]
    with pytest.raises(ValueError, match="give sum_sq, retained too"):
        HeadRow.of(arrays)
    with pytest.raises(ValueError, match="leave out depth"):
        HeadRow.of({name: getattr(row, name) for name in HeadStats._fields} | {"depth": row.lse})
