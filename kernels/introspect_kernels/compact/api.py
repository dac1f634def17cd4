"""`compact`, `compact_into` and `rebudget`: validate, then dispatch."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_arena, check_runs, is_integer
from introspect_kernels.compact.operators import IMPLEMENTATIONS, compact_op, rebudget_op, state
from introspect_kernels.errors import ArenaFullError, KernelInputError
from introspect_kernels.implementations import choose, values_can_be_read


def compact(
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    count: torch.Tensor,
    segment: torch.Tensor,
    *,
    slack: int,
    first: torch.Tensor | None = None,
    received: bool = False,
    impl: str | None = None,
) -> Arena:
    """A new arena holding the kept entries of a prefill cache, each run with room for `slack` more.

    Args:
        k: `[batch, num_kv_heads, tokens, head_dim]`, one layer's prefill keys.
        v: likewise.
        index: `int [batch, num_kv_heads, most]`, the key indices kept, ascending; beyond a run's count they are not read. See
            `pad_selection`.
        count: `int [batch, num_kv_heads]`, entries kept of each run.
        segment: `uint8 [batch, tokens]`, see `Segment`.
        slack: slots for entries to come.
        first: `int [batch]`, index of each sequence's first key (left padding), from which token indices count; 0 without.
        received: whether the arena keeps the accumulators of received attention.
        impl: `"triton"` (the default on CUDA), `"vectorised"` (the default elsewhere) or `"reference"`. A named one is used or
            refused, never replaced.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    if slack < 0:
        raise KernelInputError(f"slack must be at least 0, got {slack}")
    _validate_cache(k, v, index, count, segment, first)
    _validate_choice(index, count, torch.full_like(count, k.shape[2]), first, unchanged=False)
    arena = Arena.empty(count + slack, k.shape[3], k.dtype, received=received)
    compact_into(arena, k, v, index, count, segment, first=first, impl=impl)
    return arena


def compact_into(
    arena: Arena,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    count: torch.Tensor,
    segment: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
    impl: str | None = None,
) -> None:
    """Set runs of an arena to the kept entries of a prefill cache; what those runs held is forgotten.

    Args:
        arena: one layer's; written.
        k: as in `compact`.
        v: as in `compact`.
        index: as in `compact`.
        count: as in `compact`.
        segment: as in `compact`.
        rows: `int [batch]`, the arena's sequence for each of the cache's; their own order without.
        first: as in `compact`.
        impl: as in `compact`.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        ArenaFullError: more entries than a run's capacity.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    check_arena(arena)
    _validate_cache(k, v, index, count, segment, first)
    batch, kv_heads = k.shape[:2]
    if kv_heads != arena.num_kv_heads or k.shape[3] != arena.k.shape[1] or k.dtype != arena.k.dtype or k.device != arena.k.device:
        raise KernelInputError(
            f"the arena has {arena.num_kv_heads} KV heads of {arena.k.shape[1]} {arena.k.dtype} on {arena.k.device}, "
            f"got k {k.dtype} {tuple(k.shape)} on {k.device}"
        )
    if rows is None:
        rows = torch.arange(batch, dtype=torch.int32, device=k.device)
    if rows.shape != (batch,) or not is_integer(rows) or rows.device != k.device:
        raise KernelInputError(f"rows must be integers [{batch}] on {k.device}, got {rows.dtype} {tuple(rows.shape)} on {rows.device}")
    if values_can_be_read(rows):
        if bool(((rows < 0) | (rows >= arena.start.shape[0])).any()) or len(rows.unique()) != batch:
            raise KernelInputError(f"rows must be different sequences of the arena, 0 to {arena.start.shape[0] - 1}, got {rows.tolist()}")
        _validate_choice(index, count, torch.full_like(count, k.shape[2]), first, unchanged=False)
        check_runs(arena.start[rows.long()], count, arena.k.shape[0])
        if bool((count > arena.capacity[rows.long()]).any()):
            raise ArenaFullError(f"runs have capacity {arena.capacity[rows.long()].tolist()}, got {count.tolist()} entries")
    name = choose(impl, k, IMPLEMENTATIONS)
    k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (k, v))
    first = torch.zeros(batch, dtype=torch.int32, device=k.device) if first is None else first.to(torch.int32)
    choice = _int32(index), _int32(count)
    compact_op(*state(arena), k, v, *choice, segment.contiguous(), first, _int32(rows), name)


def rebudget(arena: Arena, index: torch.Tensor, count: torch.Tensor, *, impl: str | None = None) -> None:
    """Keep only some entries of each run, moved to its front in their order, in place; the rest becomes slack.

    Positions, segments and what was received move along.

    Args:
        arena: one layer's; written.
        index: `int [batch, num_kv_heads, most]`, places in the run of the entries to keep, ascending; beyond a run's count they
            are not read.
        count: `int [batch, num_kv_heads]`, entries to keep; -1 leaves a run as it is.
        impl: as in `compact`.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    check_arena(arena)
    if count.shape != arena.start.shape:
        raise KernelInputError(f"count must be {tuple(arena.start.shape)}, got {tuple(count.shape)}")
    _validate_form(index, count, arena.k.device)
    check_runs(arena.start, arena.length, arena.k.shape[0])
    _validate_choice(index, count, arena.length, None, unchanged=True)
    rebudget_op(*state(arena), _int32(index), _int32(count), choose(impl, arena.k, IMPLEMENTATIONS))


def _int32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.int32).contiguous()


def _validate_cache(
    k: torch.Tensor, v: torch.Tensor, index: torch.Tensor, count: torch.Tensor, segment: torch.Tensor, first: torch.Tensor | None
) -> None:
    if k.dim() != 4 or v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise KernelInputError(
            "k and v must be alike [batch, num_kv_heads, tokens, head_dim], "
            f"got {k.dtype} {tuple(k.shape)} on {k.device} and {v.dtype} {tuple(v.shape)} on {v.device}"
        )
    batch, kv_heads, tokens, _ = k.shape
    if count.shape != (batch, kv_heads):
        raise KernelInputError(f"count must be {(batch, kv_heads)}, got {tuple(count.shape)}")
    _validate_form(index, count, k.device)
    if segment.shape != (batch, tokens) or segment.dtype != torch.uint8 or segment.device != k.device:
        raise KernelInputError(
            f"segment must be uint8 {(batch, tokens)} on {k.device}, got {segment.dtype} {tuple(segment.shape)} on {segment.device}"
        )
    if first is not None and (first.shape != (batch,) or not is_integer(first) or first.device != k.device):
        raise KernelInputError(f"first must be integers [{batch}] on {k.device}, got {first.dtype} {tuple(first.shape)} on {first.device}")


def _validate_form(index: torch.Tensor, count: torch.Tensor, device: torch.device) -> None:
    if index.dim() != 3 or index.shape[:2] != count.shape or not is_integer(index) or not is_integer(count):
        raise KernelInputError(
            f"index must be integers [{', '.join(map(str, count.shape))}, most] and count integers, "
            f"got {index.dtype} {tuple(index.shape)} and {count.dtype}"
        )
    if index.device != device or count.device != device:
        raise KernelInputError(f"index and count must be on {device}, got {index.device} and {count.device}")


def _validate_choice(
    index: torch.Tensor, count: torch.Tensor, available: torch.Tensor, first: torch.Tensor | None, *, unchanged: bool
) -> None:
    """Counts and indices in range and ascending, where values can be read."""
    if not values_can_be_read(index):
        return
    least = -1 if unchanged else 0
    if bool(((count < least) | (count > index.shape[2])).any()):
        raise KernelInputError(f"count must lie in {least} to {index.shape[2]}, the width of index, got {count.tolist()}")
    if first is not None and bool((first < 0).any()):
        raise KernelInputError(f"first must be at least 0, got {first.tolist()}")
    used = torch.arange(index.shape[2], device=index.device) < count[..., None]
    low = torch.zeros_like(index) if first is None else first[:, None, None]
    wrong = used & ((index < low) | (index >= available[..., None]))
    wrong[..., 1:] |= used[..., 1:] & (index[..., 1:] <= index[..., :-1])
    if bool(wrong.any()):
        b, head, entry = (int(x) for x in wrong.nonzero()[0])
        raise KernelInputError(
            f"index must ascend within the {int(available[b, head])} entries of each run, "
            f"got {int(index[b, head, entry])} at {entry} of run ({b}, {head})"
        )
