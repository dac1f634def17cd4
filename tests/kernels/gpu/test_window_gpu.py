"""Prompt operators and moves on a GPU: the interpreter's checks, at sizes that fill it too."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import prefill, ragged_arena
from prompt_checks import CHECKS, assert_same, check_rows, check_scores, moved

from introspect_kernels import pad_selection, rebudget

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [32, 80, 128, 256])
def test_every_shipped_tile(dtype: torch.dtype, head_dim: int) -> None:
    case = prefill([700, 64], 2, 7, head_dim, window=32, padding="left", seed=1, dtype=dtype)
    check_scores(case, "cuda")
    check_rows(case, "cuda")


def test_rebudget_does_not_overtake_itself() -> None:
    lengths = [[5000, 4999], [3000, 4096]]
    for attempt in range(5):
        arena = ragged_arena(lengths, 128, seed=attempt)
        index, count = pad_selection([[torch.arange(1, n) for n in heads] for heads in lengths])
        ours = moved(arena, "cuda")
        rebudget(arena, index, count, impl="reference")
        rebudget(ours, index.cuda(), count.cuda(), impl="triton")
        assert_same(ours, arena)
