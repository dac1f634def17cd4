"""The operators as torch knows them: schemas, fakes and what is compiled agree with what runs, for every implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import prefill, ragged_arena

from introspect_kernels import (
    INDICES,
    REALS,
    Arena,
    KernelInputError,
    compact_into,
    decode_attention,
    decode_attention_packed,
    rebudget,
    received_attention,
    row_statistics,
    window_scores,
)
from introspect_kernels.compact import operators as compact_operators
from introspect_kernels.compact.operators import compact_op, rebudget_op, state
from introspect_kernels.decode.operator import decode_attention_operator
from introspect_kernels.received import operators as received_operators
from introspect_kernels.received.operators import received_op
from introspect_kernels.window import operators as window_operators
from introspect_kernels.window.operators import row_statistics_op, window_scores_op

IMPLEMENTATIONS = ("vectorised", "reference")
WHAT = ("test_schema", "test_faketensor")


def window_inputs(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    case = prefill([9, 6], 2, 2, 16, padding="left", seed=1).to(dtype)
    limit = torch.where(case.rows >= 0, case.rows - case.first[:, None], -1).int()
    return case, limit


def calls(impl: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    case, limit = window_inputs()
    arena, whole = ragged_arena([[5, 2], [3, 4]], 16, seed=2), ragged_arena([[9, 9], [9, 9]], 16, seed=3)
    index, count = torch.tensor([[[0, 1], [1, 0]], [[0, 2], [3, 0]]]).int(), torch.tensor([[2, 1], [2, 1]]).int()
    values = [value.nan_to_num() if value.is_floating_point() else value for value in state(arena) if value is not None]
    room = [value.nan_to_num() if value.is_floating_point() else value for value in state(whole) if value is not None]
    q, asked = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(4)), torch.tensor([30, 30]).int()
    span, rows = q[:, :, None].repeat(1, 1, 3, 1), torch.tensor([[3, 5, 7]] * 2).int()
    clean = {name: getattr(case, name).nan_to_num() for name in ("q", "k", "v")}
    prompt = (clean["q"], clean["k"])
    return {
        "decode": (decode_attention_operator, (q, *values, asked, 0.2, True, impl)),
        "decode without statistics": (decode_attention_operator, (q, *values, asked, 0.2, False, impl)),
        "decode without sums": (decode_attention_operator, (q, *values[:7], None, None, asked, 0.2, True, impl)),
        "window scores": (window_scores_op, (*prompt, limit, case.first, None, 0.2, "mean", impl)),
        "row statistics": (row_statistics_op, (*prompt, clean["v"], case.segment, limit, case.first, 0.2, impl)),
        "received": (received_op, (span, *(values[i] for i in (0, 2, 4, 5)), rows, torch.tensor([3, 0]).int(), None, 0.2, 5, impl)),
        "compact": (compact_op, (*room, clean["k"], clean["v"], index, count, case.segment, case.first, torch.tensor([1, 0]).int(), impl)),
        "rebudget": (rebudget_op, (*values, index, count, impl)),
    }


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", calls("reference"))
def test_fakes_agree_with_what_runs(name: str, impl: str) -> None:
    operator, arguments = calls(impl)[name]
    torch.library.opcheck(operator, arguments, test_utils=WHAT)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_double_precision_is_the_references_alone(impl: str) -> None:
    case, _ = window_inputs(torch.float64)
    expected = torch.float64 if impl == "reference" else torch.float32
    for compiled in (False, True):
        scores, statistics, received = (
            torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
            for call in (window_scores, row_statistics, received_attention)
        )
        options = {"rows": case.rows, "first": case.first, "impl": impl}
        assert scores(case.q, case.k, 0.2, **options).dtype == expected
        assert statistics(case.q, case.k, case.v, case.segment, 0.2, **options).entropy.dtype == expected
        arena = ragged_arena([[5, 2]], 16, seed=2, dtype=torch.float64)
        q, position = torch.ones(1, 4, 3, 16, dtype=torch.float64), torch.tensor([[9, 11, 12]])
        assert received(q, arena, position, 0.2, most=5, impl=impl).sums.dtype == expected


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_each_operator_compiles_as_one_graph(impl: str) -> None:
    case, _ = window_inputs()
    index, count = torch.tensor([[[0, 1], [1, 0]], [[0, 2], [3, 0]]]), torch.tensor([[2, 1], [2, 1]])

    def everything(arena: Arena) -> tuple[torch.Tensor, ...]:
        rebudget(arena, index, count, impl=impl)
        compact_into(arena, case.k, case.v, index + 3, count, case.segment, rows=torch.tensor([1, 0]), impl=impl)
        q, position = case.q.nan_to_num(), torch.tensor([[3, 5, 7, 8, 9]] * 2)
        return (
            window_scores(case.q, case.k, 0.2, rows=case.rows, first=case.first, pool=3, impl=impl),
            *row_statistics(case.q, case.k, case.v, case.segment, 0.2, rows=case.rows, first=case.first, impl=impl),
            *received_attention(q, arena, position, 0.2, heads=[1, 3], most=9, impl=impl),
        )

    eager, compiled = (ragged_arena([[9, 9], [9, 9]], 16, seed=5) for _ in range(2))
    ours = torch.compile(everything, fullgraph=True, backend="aot_eager")(compiled)
    for a, b in zip((*ours, *state(compiled)), (*everything(eager), *state(eager)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (window_operators, "window_scores", "window scores"),
        (window_operators, "row_statistics", "row statistics"),
        (received_operators, "received", "received"),
        (compact_operators, "compact", "compact"),
        (compact_operators, "rebudget", "rebudget"),
    ],
)
def test_what_is_named_is_what_runs(module: Any, name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(impl: str) -> Callable[..., None]:
        def run(*_: object) -> None:
            raise KernelInputError(f"{impl} ran")

        return run

    for impl in IMPLEMENTATIONS:
        monkeypatch.setattr(module, f"{name}_{impl}", instead(impl))
    for impl in IMPLEMENTATIONS:
        operator, arguments = calls(impl)[call]
        with pytest.raises(KernelInputError, match=f"{impl} ran"):
            operator(*arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_packed_statistics_are_those_of_the_fields(impl: str) -> None:
    arena, generator = ragged_arena([[5, 2], [0, 4]], 16, seed=2), torch.Generator().manual_seed(4)
    inputs = (torch.randn(2, 4, 16, generator=generator), arena, torch.tensor([30, 30]), 0.2)
    out, stats = decode_attention(*inputs, impl=impl)
    packed_out, packed = decode_attention_packed(*inputs, impl=impl)
    assert torch.equal(out, packed_out)
    found = dict(zip((*REALS, *INDICES), (*packed.reals, *packed.indices), strict=True)) | {
        "mass": packed.mass,
        "retained": packed.retained,
    }
    assert set(found) == set(stats._fields)
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(stats, name), rtol=0, atol=0, equal_nan=True, msg=name)
    assert decode_attention_packed(*inputs, stats=False, impl=impl)[1] is None
