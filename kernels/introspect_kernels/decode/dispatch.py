"""Which implementation runs, and what can only be checked where it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_runs
from introspect_kernels.decode.accumulate import add_received
from introspect_kernels.decode.packing import PackedStats
from introspect_kernels.decode.reference import decode_attention_reference
from introspect_kernels.implementations import choose
from introspect_kernels.statistics import HeadStats

_Packed = Callable[[torch.Tensor, Arena, torch.Tensor, float, bool], tuple[torch.Tensor, PackedStats | None]]

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
        return _vectorised()(q, arena, position, scale, stats)
    if arena.start.device.type == "cpu":
        check_runs(arena.start, arena.length, arena.k.shape[0])
    if name == "triton":
        return _triton()(q, arena, position, scale, stats)
    out, measured = decode_attention_reference(q, arena, position, scale, stats or arena.received is not None)
    if arena.received is not None and measured is not None:
        add_received(q, arena, position, scale, measured.lse)
    return out, measured if stats else None


# Each is imported when it is asked for: not everybody has Triton, and not everybody needs to load a compiler for CPUs.


@cache
def _vectorised() -> _Packed:
    from introspect_kernels.decode.vectorised import decode_attention_vectorised

    return decode_attention_vectorised


@cache
def _triton() -> _Packed:
    from introspect_kernels.decode.triton_host import decode_attention_triton

    return decode_attention_triton
