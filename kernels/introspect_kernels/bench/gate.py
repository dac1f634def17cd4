"""The correctness gate: nothing is timed that does not agree with the fp64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from introspect_kernels.bench.problems import Inputs
from introspect_kernels.decode.api import decode_attention, decode_attention_packed
from introspect_kernels.decode.packing import PackedStats, unpack
from introspect_kernels.errors import KernelError
from introspect_kernels.statistics import HeadStats

Attention = Callable[..., tuple[torch.Tensor, HeadStats | None]]
PackedAttention = Callable[..., tuple[torch.Tensor, PackedStats | None]]
FLOOR = 4e-6
"""A few units in the last place of fp32; nothing is asked to be closer."""
_EXACT = ("argmax_position", "image_argmax_position", "retained")


class GateError(KernelError):
    """An implementation's results are further from fp64 than an independent low-precision run's, so it is not timed."""


def check(inputs: Inputs, attend: Attention = decode_attention) -> dict[str, float]:
    """Compare output and statistics of the batch's last sequence with fp64; with and without statistics.

    Args:
        inputs: the problem.
        attend: called as `decode_attention` is.

    Returns:
        For the output and each real field, the error over its budget: twice the error of the reference in the
        problem's own precision (fp32 for statistics), plus a floor.

    Raises:
        GateError: a budget is exceeded; the message says which and by how much.
    """
    row = torch.tensor([inputs.q.shape[0] - 1])
    arena = inputs.arena.select(row.to(inputs.q.device))
    out, stats = attend(inputs.q, inputs.arena, inputs.position, inputs.scale, stats=True)
    plain, _ = attend(inputs.q, inputs.arena, inputs.position, inputs.scale, stats=False)
    q, position = inputs.q[-1:].cpu(), inputs.position[-1:].cpu()
    arena = replace(arena, **{name: getattr(arena, name).cpu() for name in ("k", "v", "position", "segment", "start", "length")})

    def reference(dtype: torch.dtype) -> tuple[torch.Tensor, HeadStats]:
        cast = replace(arena, k=arena.k.to(dtype), v=arena.v.to(dtype))
        result, measured = decode_attention(q.to(dtype), cast, position, inputs.scale, impl="reference")
        if measured is None:
            raise GateError("the reference gave no statistics")
        return result, measured

    if stats is None:
        raise GateError("expected statistics, got none; not timed")
    (exact_out, exact), (low_out, low) = reference(torch.float64), reference(torch.float32)
    found = {
        "out": _excess("out", out[-1:].cpu(), exact_out, low_out.to(q.dtype)),
        "out without statistics": _excess("out without statistics", plain[-1:].cpu(), exact_out, low_out.to(q.dtype)),
    }
    for name in HeadStats._fields:
        ours, theirs, rough = (getattr(s, name)[-1:].cpu() for s in (stats, exact, low))
        if name not in _EXACT:
            found[name] = _excess(name, ours, theirs, rough)
        elif not torch.equal(ours.long(), theirs.long()):
            raise GateError(f"{name}: expected {theirs.flatten()[:4].tolist()}..., got {ours.flatten()[:4].tolist()}...; not timed")
    return found


def check_packed(inputs: Inputs, attend: PackedAttention = decode_attention_packed) -> None:
    """Whether a decode loop's form of the operator gives what `decode_attention` does, to the bit.

    Args:
        inputs: the problem.
        attend: called as `decode_attention_packed` is.

    Raises:
        GateError: it does not.
    """
    given = (inputs.q, inputs.arena, inputs.position, inputs.scale)
    (out, stats), (plain, _) = attend(*given), attend(*given, False)
    expected, fields = decode_attention(*given)
    if stats is None or fields is None:
        raise GateError("expected statistics, got none; not timed")
    pairs = [("out", out, expected), ("out without statistics", plain, expected)]
    pairs += [(name, getattr(unpack(stats), name), getattr(fields, name)) for name in HeadStats._fields]
    for name, ours, theirs in pairs:
        if not torch.equal(ours.nan_to_num(nan=-1.0), theirs.nan_to_num(nan=-1.0)):
            raise GateError(f"{name}: packed statistics and fields differ; not timed")


def _excess(name: str, ours: torch.Tensor, exact: torch.Tensor, rough: torch.Tensor) -> float:
    ours, rough = ours.double(), rough.double()
    if not torch.equal(ours.isfinite(), exact.isfinite()):
        raise GateError(f"{name}: finite where the reference is not, or the other way round; not timed")
    known = exact.isfinite()
    if not known.any():
        return 0.0
    budget = 2 * (rough - exact)[known].abs().max().item() + FLOOR * max(1.0, exact[known].abs().max().item())
    error = (ours - exact)[known].abs().max().item()
    if error > budget:
        raise GateError(f"{name}: an error of {error:.3g} against fp64 where {budget:.3g} is allowed; not timed")
    return error / budget
