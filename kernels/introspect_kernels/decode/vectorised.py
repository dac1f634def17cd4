"""The path that runs in production without a GPU: one compiled pass over keys and values, fp32 arithmetic."""

from __future__ import annotations

import struct
from array import array

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_runs
from introspect_kernels.decode.cpu_call import (
    ATTEND,
    BAD_SEGMENT,
    FIELDS,
    KEEP,
    LARGE,
    OUTSIDE,
    SCALE,
    SCRATCH,
    SPREAD,
    STAGE,
    STATUS,
    WELL,
    Call,
)
from introspect_kernels.decode.cpu_entries import called, entry
from introspect_kernels.decode.cpu_threads import in_threads
from introspect_kernels.decode.cpu_workspace import scratch
from introspect_kernels.decode.packing import INDICES, REALS, PackedStats
from introspect_kernels.errors import KernelError, KernelInputError, UnknownImplementationError
from introspect_kernels.segments import NUM_SEGMENTS

WORTH_THREADS = 1 << 17  # products of a key's number with a query's: below, threads take longer to start than they save
_NEVER = 1 << 62
_AS_BYTES = struct.Struct(f"={SCALE}qd{FIELDS - len(Call._field_defaults) - SCALE - 1}q")
_NOT_YET = struct.pack(f"={len(Call._field_defaults)}q", *Call._field_defaults.values())
# Numba knows neither bf16 nor fp16; their bits come to it as integers (`cpu_scalars.as_float`).
_KINDS = {torch.bfloat16: "uint16", torch.float16: "int16", torch.float32: "float32", torch.float64: "float64"}


def decode_attention_vectorised(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool
) -> tuple[torch.Tensor, PackedStats | None]:
    """See `decode_attention`; also adds to `arena.received` where it is kept.

    Raises:
        UnknownImplementationError: the tensors are on another device.
        KernelInputError: a run leaves the arena, or an entry's segment is none; nothing is changed then.
    """
    if not q.is_cpu:
        raise UnknownImplementationError(f"impl 'vectorised' is compiled for CPUs, got tensors on {q.device}; 'reference' runs anywhere")
    batch, heads, head_dim = q.shape
    start, received, queries = arena.start, arena.received, arena.queries
    kv_heads, threads = start.shape[1], torch.get_num_threads()
    out = torch.empty(batch, heads, head_dim)
    packed = _memory_for_statistics(batch, heads, kv_heads) if stats else None
    reals, mass, indices, retained = (0, 0, 0, 0) if packed is None else [tensor.data_ptr() for tensor in packed]
    # What is read is named, so that it outlives the call even where it is a copy.
    q = q.contiguous()
    query = (position if position.dtype == torch.int32 else position.to(torch.int32)).contiguous()
    # In the order of `Call` and by way of bytes: names and an array of integers would take longer than a small step's arithmetic.
    given = _AS_BYTES.pack(
        batch * kv_heads,
        kv_heads,
        heads // kv_heads,
        head_dim,
        arena.k.shape[0],
        stats,
        received is not None and queries is not None,
        scale,
        q.data_ptr(),
        arena.k.data_ptr(),
        arena.v.data_ptr(),
        arena.position.data_ptr(),
        arena.segment.data_ptr(),
        start.data_ptr(),
        arena.length.data_ptr(),
        query.data_ptr(),
        0 if received is None else received.data_ptr(),
        0 if queries is None else queries.data_ptr(),
        out.data_ptr(),
        reals,
        mass,
        indices,
        retained,
        WORTH_THREADS if threads > 1 else _NEVER,
    )
    fields = array("q", given + _NOT_YET + bytes(8 * batch * kv_heads))
    function, at = called(_KINDS[q.dtype]), fields.buffer_info()[0]
    found = function(at)
    if found == LARGE:
        fields[SCRATCH] = scratch(fields[SCRATCH])
        fields[STAGE] = ATTEND
        in_threads(entry(_KINDS[q.dtype]).address, at, threads)
        fields[STAGE] = SPREAD
        found = function(at) if fields[KEEP] else fields[STATUS]
    if found == OUTSIDE:
        check_runs(start, arena.length, arena.k.shape[0])  # says which
    if found == BAD_SEGMENT:
        raise KernelInputError(f"segments must be 0 to {NUM_SEGMENTS - 1}, got up to {int(arena.segment.max())}")
    if found != WELL:
        raise KernelError("the compiled attention gave up without a reason; there may be no memory left")
    return out if q.dtype == torch.float32 else out.to(q.dtype), packed if stats else None


def compile_ahead(dtype: torch.dtype) -> None:
    """Compile, or load, what calls of a dtype need."""
    called(_KINDS[dtype])


def _memory_for_statistics(batch: int, heads: int, kv_heads: int) -> PackedStats:
    return PackedStats(
        torch.empty(len(REALS), batch, heads),
        torch.empty(batch, heads, NUM_SEGMENTS),
        torch.empty(len(INDICES), batch, heads, dtype=torch.int32),
        torch.empty(batch, kv_heads, NUM_SEGMENTS, dtype=torch.int32),
    )
