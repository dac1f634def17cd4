"""Run by `test_decode_triton.py` in a process of its own: TRITON_INTERPRET must be set before a kernel is decorated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from decode_cases import CASES, Case, arena_of, query_of
from decode_checks import CHECKS, check_case
from memory_bounds import checked_memory

from introspect_kernels import KernelInputError, decode_attention
from introspect_kernels.implementations import interpreted


@pytest.fixture(autouse=True)
def _own_memory_only() -> Iterator[None]:
    with checked_memory():
        yield


@pytest.mark.parametrize("name", CASES)
def test_equals_fp64(name: str) -> None:
    check_case(name, "cpu")


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]("cpu")


def test_this_is_the_interpreter() -> None:
    assert interpreted()


def test_what_the_kernels_are_not_built_for_is_refused() -> None:
    wide = Case([[4]], 17, 32)
    arena = arena_of(wide)
    with pytest.raises(KernelInputError, match=r"up to 16 query heads per KV head; got .*, 32, 17"):
        decode_attention(*_call(wide, arena), 1.0, impl="triton")
    large = Case([[4]], 1, 288)
    arena = arena_of(large)
    with pytest.raises(KernelInputError, match="head_dim up to 256"):
        decode_attention(*_call(large, arena), 1.0, impl="triton")
    double = Case([[4]], 1, 32, torch.float64)
    arena = arena_of(double)
    with pytest.raises(KernelInputError, match=r"got torch\.float64"):
        decode_attention(*_call(double, arena), 1.0, impl="triton")


def test_compiles_as_one_graph() -> None:
    case = Case([[40, 3]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)

    def step(q: torch.Tensor) -> torch.Tensor:
        out, stats = decode_attention(q, arena, position, 0.2, impl="triton")
        assert stats is not None
        return out.sum() + stats.entropy.sum()

    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(q), step(q), rtol=0, atol=0)


def _call(case: Case, arena: object) -> tuple[object, ...]:
    q, position = query_of(case, arena)
    return q, arena, position
