"""Which implementation runs, and what can only be checked where it runs."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_runs
from introspect_kernels.decode.accumulate import add_received
from introspect_kernels.decode.packing import PackedStats
from introspect_kernels.decode.reference import decode_attention_reference
from introspect_kernels.implementations import choose
from introspect_kernels.statistics import HeadStats

IMPLEMENTATIONS = ("reference", "triton", "vectorised")


def run(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool, impl: str | None
) -> tuple[torch.Tensor, HeadStats | PackedStats | None]:
    """Run one implementation on inputs of the right shapes; without a name, `triton` on CUDA devices and `vectorised` elsewhere.

    Raises:
        UnknownImplementationError: there is none of that name, or it cannot run here.
        KernelInputError: offsets out of range (tensors on a CPU only), or not what the implementation takes.
    """
    name = choose(impl, q, IMPLEMENTATIONS)
    if name == "vectorised":
        # Each is imported when it is asked for: not everybody has Triton, and not everybody needs to load a compiler for CPUs.
        from introspect_kernels.decode.vectorised import decode_attention_vectorised

        return decode_attention_vectorised(q, arena, position, scale, stats)
    if arena.start.device.type == "cpu":
        check_runs(arena.start, arena.length, arena.k.shape[0])
    if name == "triton":
        from introspect_kernels.decode.triton_host import decode_attention_triton

        return decode_attention_triton(q, arena, position, scale, stats)
    out, measured = decode_attention_reference(q, arena, position, scale, stats or arena.received is not None)
    if arena.received is not None and measured is not None:
        add_received(q, arena, position, scale, measured.lse)
    return out, measured if stats else None
