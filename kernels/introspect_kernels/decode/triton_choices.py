"""Tile sizes for the attention kernel: a small table with reasons, and no tuning at run time.

Tuning while a server runs stalls a request, breaks graph capture and makes two
processes answer differently. The kernel copies: what matters is bytes in flight,
no spills and the warp layout, all of which the tests check on compiled code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from introspect_kernels.errors import KernelInputError

MAX_GROUP = 16
MAX_HEAD_DIM = 256
PART = 128  # dimensions of a head multiplied at a time: with 256 fp32, which multiplies in three steps, takes more registers than there are
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Choice:
    """How the attention kernel is compiled for a head size and element size.

    Attributes:
        block: entries per tile.
        stages: tiles in flight, the one being computed included.
        registers: limit per thread, None for the hardware's. Told nothing, ptxas prefers spilling one value to passing 128 where
            four warps run; where eight do, a limit of 255 makes it spill and none does not.
        residents: programs per multiprocessor that the launch counts on.
        warps: per program. One spills; four divide a tile of 32 entries without repeating work.
    """

    block: int
    stages: int
    registers: int | None
    residents: int
    warps: int = 4


# 32 entries a tile: the sums that the statistics keep take half the registers that 64 need.
_CHOICES = {
    # (bytes of an element, padded head size)
    (2, 32): Choice(32, 4, registers=168, residents=3),
    (2, 64): Choice(32, 4, registers=168, residents=3),
    (2, 128): Choice(32, 4, registers=168, residents=3),  # 16 KiB a tile; three programs fit from sm_80 on
    (2, 256): Choice(32, 3, registers=255, residents=2),
    (4, 32): Choice(32, 4, registers=255, residents=2),
    (4, 64): Choice(32, 4, registers=255, residents=2),
    (4, 128): Choice(32, 2, registers=255, residents=2),  # at three stages only one program fits on sm_80
    # 64 KiB a tile: three do not fit on sm_80. Four warps would hold twice as much of the output each, and spill.
    (4, 256): Choice(32, 2, registers=None, residents=1, warps=8),
}


def padded_head_dim(head_dim: int) -> int:
    """Head size as the kernel's tiles have it: a power of two from 32 on; the rest is masked and moves no memory."""
    return max(32, 1 << (head_dim - 1).bit_length())


def choose(dtype: torch.dtype, head_dim: int, group: int, *, keep_scores: bool = False) -> Choice:
    """The choice for a shape.

    Keeping the scores takes shared memory of its own, which leaves room for two programs on sm_80.

    Raises:
        KernelInputError: the kernel is not built for it.
    """
    if dtype not in DTYPES or not 1 <= head_dim <= MAX_HEAD_DIM or not 1 <= group <= MAX_GROUP:
        raise KernelInputError(
            f"impl='triton' takes bfloat16, float16 or float32, head_dim up to {MAX_HEAD_DIM} and up to {MAX_GROUP} query heads per "
            f"KV head; got {dtype}, {head_dim}, {group}; impl='vectorised' takes any"
        )
    choice = _CHOICES[dtype.itemsize, padded_head_dim(head_dim)]
    return replace(choice, residents=min(2, choice.residents)) if keep_scores else choice
