"""`window_scores` and `row_statistics`: validate, then dispatch."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from introspect_kernels.arena_form import is_integer
from introspect_kernels.errors import KernelInputError
from introspect_kernels.implementations import choose, values_can_be_read
from introspect_kernels.segments import NUM_SEGMENTS
from introspect_kernels.statistics import HeadStats
from introspect_kernels.window.fields import as_head_stats
from introspect_kernels.window.operators import IMPLEMENTATIONS, row_statistics_op, window_scores_op

Reduction = Literal["mean", "sum", "max"]
Pooling = Literal["mean", "max"]


def window_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: float,
    *,
    rows: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    reduce: Reduction = "mean",
    pool: int = 1,
    pooling: Pooling = "mean",
    impl: str | None = None,
) -> torch.Tensor:
    """What a prompt's last queries give every key: causal attention, summed over those queries (SnapKV, arXiv 2404.14469).

    Args:
        q: `[batch, num_heads, window, head_dim]`; head h reads KV head `h // (num_heads / num_kv_heads)`.
        k: `[batch, num_kv_heads, tokens, head_dim]`, the prefill's keys.
        scale: factor on the scores before the softmax.
        rows: `int [batch, window]`, the key index of each query, -1 where there is none; the last `window` keys
            without. Under padding see `last_rows`.
        first: `int [batch]`, index of each sequence's first key (left padding); 0 without.
        lse: `float [batch, num_heads, window]`, each query's log-sum-exp over its visible keys, nats, where the
            prefill kernel returned it; found here without.
        reduce: over the query heads of a KV head, after the sum over queries.
        pool: odd width of a centred window over neighbouring keys; 1 leaves the scores alone.
        pooling: mean (beyond the ends counts as zero, as in SnapKV's code) or largest of that window.
        impl: `"triton"` (the default on CUDA), `"vectorised"` (the default elsewhere) or `"reference"`. A named one is used or
            refused, never replaced.

    Returns:
        `float32 [batch, num_kv_heads, tokens]` (`float64` from the reference on fp64 input); zero on keys that no query sees.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    rows, first = _validate(q, k, rows, first)
    if lse is not None and (lse.shape != q.shape[:3] or lse.device != q.device or not lse.is_floating_point()):
        raise KernelInputError(f"lse must be floats {tuple(q.shape[:3])} on {q.device}, got {lse.dtype} {tuple(lse.shape)} on {lse.device}")
    if reduce not in ("mean", "sum", "max"):
        raise KernelInputError(f"reduce must be 'mean', 'sum' or 'max', got {reduce!r}")
    if pool < 1 or pool % 2 == 0 or pooling not in ("mean", "max"):
        raise KernelInputError(f"pool must be an odd width and pooling 'mean' or 'max', got {pool} and {pooling!r}")
    name = choose(impl, q, IMPLEMENTATIONS)
    limit = torch.where(rows >= 0, rows - first[:, None], -1).to(torch.int32)
    scores: torch.Tensor = window_scores_op(_rows_dense(q), _rows_dense(k), limit, first, lse, scale, reduce, name)
    if pool == 1:
        return scores
    index = torch.arange(k.shape[2], device=k.device)
    own = (index >= first[:, None]) & (index <= rows.amax(1, keepdim=True))
    width = functional.avg_pool1d if pooling == "mean" else functional.max_pool1d
    return width(scores, pool, stride=1, padding=pool // 2) * own[:, None]


def row_statistics(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment: torch.Tensor,
    scale: float,
    *,
    rows: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
    impl: str | None = None,
) -> HeadStats:
    """Head statistics of chosen prompt rows, from one pass over the prefill's keys and values.

    Each row is described as if it were a decode step over the keys up to its own; the definitions are `HeadStats`'s.
    Token indices count from each sequence's first key.

    Args:
        q: `[batch, num_heads, rows, head_dim]`, the chosen rows' queries.
        k: `[batch, num_kv_heads, tokens, head_dim]`.
        v: likewise.
        segment: `uint8 [batch, tokens]`, see `Segment`.
        scale: factor on the scores before the softmax.
        rows: `int [batch, rows]`, as in `window_scores`; the last keys without.
        first: `int [batch]`, as in `window_scores`.
        impl: as in `window_scores`.

    Returns:
        Statistics with fields `[batch, rows, num_heads]`, `mass [batch, rows, num_heads, 6]` and
        `retained [batch, rows, num_kv_heads, 6]`. A row of -1 has `lse` of -inf and NaN or -1 elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    rows, first = _validate(q, k, rows, first)
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise KernelInputError(f"v must be like k {k.dtype} {tuple(k.shape)} on {k.device}, got {v.dtype} {tuple(v.shape)} on {v.device}")
    expected = (k.shape[0], k.shape[2])
    if segment.shape != expected or segment.dtype != torch.uint8 or segment.device != k.device:
        raise KernelInputError(
            f"segment must be uint8 {expected} on {k.device}, got {segment.dtype} {tuple(segment.shape)} on {segment.device}"
        )
    name = choose(impl, q, IMPLEMENTATIONS)
    limit = torch.where(rows >= 0, rows - first[:, None], -1).to(torch.int32)
    reals, indices, mass = row_statistics_op(
        _rows_dense(q), _rows_dense(k), _rows_dense(v), segment.contiguous(), limit, first, scale, name
    )
    return as_head_stats(reals, indices, mass, retained=_retained(segment, rows, first, k.shape[1]))


def _retained(segment: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Visible keys per row, KV head and segment, `int32 [batch, rows, num_kv_heads, 6]`."""
    index = torch.arange(segment.shape[1], device=segment.device)
    own = (index >= first[:, None])[..., None]
    one_hot = (segment[..., None] == torch.arange(NUM_SEGMENTS, dtype=torch.uint8, device=segment.device)) & own
    upto = one_hot.cumsum(1, dtype=torch.int32)
    counts = upto.gather(1, rows.clamp(min=0).long()[..., None].expand(-1, -1, NUM_SEGMENTS)) * (rows >= 0)[..., None]
    return counts[:, :, None].repeat(1, 1, kv_heads, 1)


def _rows_dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels want each head vector in one piece; any other stride will do."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _validate(q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor | None, first: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and first keys as int32, the defaults filled in."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise KernelInputError(
            "q must be [batch, num_heads, rows, head_dim] and k [batch, num_kv_heads, tokens, head_dim], "
            f"got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    batch, heads, count, _ = q.shape
    kv_heads, tokens = k.shape[1:3]
    if not kv_heads or not heads or heads % kv_heads:
        raise KernelInputError(f"num_heads must be a multiple of num_kv_heads {kv_heads}, got {heads}")
    if q.dtype != k.dtype or not q.is_floating_point() or q.device != k.device:
        raise KernelInputError(f"q and k must share a float dtype and a device, got {q.dtype} on {q.device} and {k.dtype} on {k.device}")
    if rows is None:
        if count > tokens:
            raise KernelInputError(f"without rows there must be at most {tokens} queries, one for each key, got {count}")
        rows = torch.arange(tokens - count, tokens, dtype=torch.int32, device=k.device).repeat(batch, 1)
    if first is None:
        first = torch.zeros(batch, dtype=torch.int32, device=k.device)
    for name, tensor, shape in (("rows", rows, (batch, count)), ("first", first, (batch,))):
        if tensor.shape != shape or not is_integer(tensor) or tensor.device != k.device:
            raise KernelInputError(
                f"{name} must be integers {shape} on {k.device}, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    if values_can_be_read(rows):
        wrong = (rows >= tokens) | ((rows < first[:, None]) & (rows != -1))
        if bool(wrong.any()) or bool((first < 0).any()):
            raise KernelInputError(
                f"rows must lie between the sequence's first key and {tokens - 1}, or be -1, "
                f"got rows {rows[wrong].tolist()[:4]} and first {first.tolist()[:4]}"
            )
    return rows.to(torch.int32), first.to(torch.int32)
