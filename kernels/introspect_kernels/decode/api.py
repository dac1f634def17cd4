"""`decode_attention`: validate, then dispatch."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_arena, is_integer
from introspect_kernels.decode.dispatch import run
from introspect_kernels.decode.operator import decode_attention_operator
from introspect_kernels.decode.packing import PackedStats, pack, unpack
from introspect_kernels.errors import KernelInputError
from introspect_kernels.statistics import HeadStats


def decode_attention(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, *, stats: bool = True, impl: str | None = None
) -> tuple[torch.Tensor, HeadStats | None]:
    """Attention of one query token per sequence over its retained entries, with head statistics.

    Where the arena keeps `received`, every entry's sum grows by what it got in this step.

    Args:
        q: `[batch, num_heads, head_dim]`; head h reads KV head `h // (num_heads / num_kv_heads)`.
        arena: the layer's entries, the query's own included. Its runs must not overlap, positions ascend
            in each run, none is after the query's, and segments are 0 to 5.
        position: `int [batch]`, the query's token index, for distances and the self mass.
        scale: factor on the scores before the softmax.
        stats: whether to return statistics; without them `None` takes their place.
        impl: `"triton"` (the default for CUDA tensors), `"vectorised"` (the default elsewhere) or `"reference"`.
            A named one is used or refused, never replaced.

    Returns:
        The output `[batch, num_heads, head_dim]` in q's dtype, and the statistics. A head without
        entries gives a zero output, `lse` of -inf and NaN elsewhere. Where `"triton"` cannot account for
        every entry of a run (a segment above 5, runs that overlap), that run's outputs are NaN.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit, or a run leaves the arena. The latter is
            checked for tensors on a CPU only: on a GPU it would make the host wait for the device.
        UnknownImplementationError: there is no such `impl`, or it cannot run here; the message says why.
    """
    _validate(q, arena, position)
    if torch.compiler.is_compiling():
        a = arena
        out, *packed = decode_attention_operator(
            q, a.k, a.v, a.position, a.segment, a.start, a.length, a.capacity, a.received, a.queries, position, scale, stats, impl
        )
        return out, unpack(PackedStats(*packed)) if stats else None
    out, measured = run(q, arena, position, scale, stats, impl)
    return out, unpack(measured) if isinstance(measured, PackedStats) else measured


def decode_attention_packed(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool = True, impl: str | None = None
) -> tuple[torch.Tensor, PackedStats | None]:
    """`decode_attention` for decode loops: the statistics in the four tensors that kernels fill, and fewer checks.

    For a small step on a CPU, checking every tensor and making a view of every field takes longer than the attention.
    Shapes, dtypes and devices are taken as they are: whoever calls this answers for them. Under `torch.compile` call
    `decode_attention`.

    Args:
        q: see `decode_attention`, as for all that follow.
        arena: likewise.
        position: likewise.
        scale: likewise.
        stats: likewise.
        impl: likewise.

    Returns:
        The output, and the statistics or `None`.

    Raises:
        KernelInputError: a run leaves the arena (tensors on a CPU only).
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    out, measured = run(q, arena, position, scale, stats, impl)
    return out, pack(measured) if isinstance(measured, HeadStats) else measured


def compile_ahead(dtype: torch.dtype) -> None:
    """Compile what `decode_attention` runs on a CPU, which its first call would do otherwise.

    It takes long once, and is loaded afterwards; `introspect bench kernels` writes down how long.

    Args:
        dtype: of keys and values.
    """
    from introspect_kernels.decode.vectorised import compile_ahead as compile_vectorised

    compile_vectorised(dtype)


def _validate(q: torch.Tensor, arena: Arena, position: torch.Tensor) -> None:
    dtype, shape = q.dtype, q.shape
    if arena.k.dtype != dtype or arena.v.dtype != dtype:
        raise KernelInputError(f"q, k and v must have one floating dtype, got {dtype}, {arena.k.dtype}, {arena.v.dtype}")
    check_arena(arena)
    (batch, kv_heads), head_dim, device = arena.start.shape, arena.k.shape[1], q.device
    if len(shape) != 3 or shape[0] != batch or shape[2] != head_dim:
        raise KernelInputError(f"q must be [{batch}, num_heads, {head_dim}], got {tuple(shape)}")
    if shape[1] == 0 or shape[1] % kv_heads:
        raise KernelInputError(f"num_heads must be a multiple of num_kv_heads {kv_heads}, got {shape[1]}")
    if position.shape != (batch,) or not is_integer(position):
        raise KernelInputError(f"position must be integers [{batch}], got {position.dtype} {tuple(position.shape)}")
    for name, tensor in (("arena", arena.k), ("position", position)):
        if tensor.device != device:
            raise KernelInputError(f"q is on {device}, the {name} on {tensor.device}")
