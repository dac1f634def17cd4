"""A ragged choice of entries as two tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pad_selection(kept: Sequence[Sequence[torch.Tensor]], device: torch.device | str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices per sequence and KV head as one padded tensor.

    Args:
        kept: for each sequence and KV head the entries to keep, `int [n]`, ascending.
        device: of the result; the entries' own without.

    Returns:
        `index int32 [batch, num_kv_heads, most]`, -1 beyond a run's count, and `count int32 [batch, num_kv_heads]`.
    """
    count = torch.tensor([[len(entries) for entries in heads] for heads in kept], dtype=torch.int32)
    index = torch.full((*count.shape, int(count.max()) if count.numel() else 0), -1, dtype=torch.int32)
    for row, heads in enumerate(kept):
        for head, entries in enumerate(heads):
            index[row, head, : len(entries)] = entries
    target = device if device is not None else next((entries.device for heads in kept for entries in heads), None)
    return index.to(target), count.to(target)
