"""Run by `test_window_triton.py` in a process of its own: TRITON_INTERPRET must be set before a kernel is decorated."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from kernel_cases import prefill, ragged_arena
from memory_bounds import checked_memory
from prompt_checks import CHECKS
from triton.runtime.interpreter import GridExecutor

from introspect_kernels import compact_into, rebudget, received_attention, row_statistics, window_scores
from introspect_kernels.implementations import interpreted

# The interpreter computes with NumPy, which remarks on a logarithm of zero even where the result is masked away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _own_memory_only() -> Iterator[None]:
    with checked_memory():
        yield


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]("cpu")


def test_what_is_asked_of_triton_runs_in_triton() -> None:
    arena, case = ragged_arena([[5, 4]], 16, seed=1), prefill([9], 2, 1, 16, seed=1)
    index, count = torch.tensor([[[0, 2], [1, 0]]]), torch.tensor([[2, 1]])
    calls = {
        "partial_lse_kernel merge_lse_kernel column_sums_kernel": lambda: window_scores(case.q, case.k, 0.2, impl="triton"),
        "row_statistics_kernel image_share_kernel": lambda: row_statistics(case.q, case.k, case.v, case.segment, 0.2, impl="triton"),
        "column_sums_kernel": lambda: received_attention(case.q, arena, torch.arange(5)[None], 0.2, lse=torch.ones(1, 2, 5), impl="triton"),
        "rebudget_kernel": lambda: rebudget(arena, index, count, impl="triton"),
        "compact_kernel": lambda: compact_into(arena, case.k, case.v, index, count, case.segment, impl="triton"),
    }
    launch = GridExecutor.__call__
    for kernels, call in calls.items():
        ran: list[str] = []

        def record(executor: GridExecutor, *values: object, ran: list[str] = ran, **named: object) -> None:
            ran.append(executor.fn.__name__)
            launch(executor, *values, **named)

        with mock.patch.object(GridExecutor, "__call__", record):
            call()
        assert ran == kernels.split()


def test_this_is_the_interpreter() -> None:
    assert interpreted()
