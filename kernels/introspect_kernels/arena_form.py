"""What every operator that writes into an arena, or reads one, asks of it before anything runs."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.errors import KernelInputError
from introspect_kernels.implementations import values_can_be_read

_ENTRIES, _SLOTS, _RUNS = range(3)  # shapes: of keys, of what each slot has one of, of what each run has one of
_FORM = (
    ("k", None, _ENTRIES),
    ("v", None, _ENTRIES),
    ("position", torch.int32, _SLOTS),
    ("segment", torch.uint8, _SLOTS),
    ("start", torch.int32, _RUNS),
    ("length", torch.int32, _RUNS),
    ("capacity", torch.int32, _RUNS),
    ("received", torch.float32, _SLOTS),
    ("queries", torch.int32, _SLOTS),
)
"""Tensors of an arena: name, dtype (none: as the keys), which shape."""


def is_integer(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds integers; booleans are none."""
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def check_arena(arena: Arena) -> None:
    """Dtypes, shapes and devices of an arena's tensors, and that their numbers follow each other: kernels write where they lie.

    Raises:
        KernelInputError: one of them does not fit; the message says which.
    """
    if arena.k.dim() != 2 or not arena.k.is_floating_point() or arena.start.dim() != 2:
        raise KernelInputError(
            "the arena's k must be floats [slots, head_dim] and its start [batch, num_kv_heads], "
            f"got {arena.k.dtype} {tuple(arena.k.shape)} and {tuple(arena.start.shape)}"
        )
    device, shapes = arena.k.device, (arena.k.shape, arena.k.shape[:1], arena.start.shape)
    for name, kind, of in _FORM:
        tensor = getattr(arena, name)
        if tensor is None:
            continue
        dtype, shape = kind or arena.k.dtype, shapes[of]
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
            raise KernelInputError(
                f"the arena's {name} must be {dtype} {tuple(shape)} on {device}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise KernelInputError(f"the arena's {name} must be contiguous, got strides {tensor.stride()} of shape {tuple(shape)}")


def check_runs(start: torch.Tensor, entries: torch.Tensor, slots: int) -> None:
    """Whether runs lie within an arena's slots, where values can be read.

    Args:
        start: `int [batch, num_kv_heads]`, first slot of each run.
        entries: likewise, how many slots of it are meant.
        slots: of the arena.

    Raises:
        KernelInputError: a run leaves the arena.
    """
    if not start.numel() or not values_can_be_read(start):
        return
    lowest, end = int(torch.minimum(start, entries).min()), int((start + entries).max())
    if lowest < 0 or end > slots:
        raise KernelInputError(
            f"every run must lie within the arena's {slots} slots; got starts from {int(start.min())}, "
            f"entries from {int(entries.min())} and an end at {end}"
        )
