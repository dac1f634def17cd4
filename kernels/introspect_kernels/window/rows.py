"""Which key each query row is, under padding."""

from __future__ import annotations

from typing import Literal

import torch

from introspect_kernels.errors import KernelInputError


def last_rows(
    length: torch.Tensor, window: int, tokens: int, padding: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key indices of each sequence's last rows in a padded batch, and of its first key.

    Args:
        length: `int [batch]`, tokens of each sequence.
        window: rows of each sequence.
        tokens: padded length.
        padding: the side on which shorter sequences are padded.

    Returns:
        `rows int32 [batch, window]`, -1 where a sequence is shorter than the window, and `first int32 [batch]`:
        the `rows` and `first` of `window_scores` and `row_statistics`.

    Raises:
        KernelInputError: length is no vector of integers.
    """
    if length.dim() != 1 or length.is_floating_point():
        raise KernelInputError(f"length must be integers [batch], got {length.dtype} {tuple(length.shape)}")
    length = length.to(torch.int32)
    first = tokens - length if padding == "left" else torch.zeros_like(length)
    offset = length[:, None] - window + torch.arange(window, dtype=torch.int32, device=length.device)
    return torch.where(offset >= 0, offset + first[:, None], -1), first
