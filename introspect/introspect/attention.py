"""The attention function that the runtime registers with transformers.

Only the language model uses it. What it does is set by the pass that is
active in the current context: a prefill gives each layer's keys, values and last
queries away; a decode step attends over the KV arena and keeps the head statistics.
With no pass active it is plain SDPA, so that the model still works by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from introspect_kernels import Arena, PackedStats
from introspect_kernels import decode_attention_packed as run

NAME = "introspect"


class AttentionPass(Protocol):
    """What is done at each layer's attention while the pass is active."""

    def attend(
        self,
        layer: int,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Output `[batch, queries, heads, head_dim]` from q, k, v `[batch, heads, tokens, head_dim]`, after RoPE."""
        ...


_ACTIVE: ContextVar[AttentionPass | None] = ContextVar("introspect_attention_pass", default=None)


@contextmanager
def active(attention_pass: AttentionPass) -> Iterator[None]:
    """Make `attention_pass` the active one for the duration of a forward call."""
    token = _ACTIVE.set(attention_pass)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_active(attention_pass: AttentionPass) -> bool:
    """Whether `attention_pass` is the active one of this context."""
    return _ACTIVE.get() is attention_pass


def running() -> AttentionPass | None:
    """The active pass of this context."""
    return _ACTIVE.get()


_ABLATED: ContextVar[torch.Tensor | None] = ContextVar("introspect_ablated_heads", default=None)


@contextmanager
def ablated(heads: torch.Tensor) -> Iterator[None]:
    """Zero what some heads add to the residual stream, in prefill and decode, for the duration of the context.

    Their attention is computed and measured as ever; only their output is nothing.

    Args:
        heads: `bool [layers, heads]`, true where a head is silenced.
    """
    token = _ABLATED.set(heads)
    try:
        yield
    finally:
        _ABLATED.reset(token)


def is_ablated() -> bool:
    """Whether heads are silenced in this context."""
    return _ABLATED.get() is not None


class Lane(Protocol):
    """Sequences of a decode step that want the same of it.

    Attributes:
        rows: which of the step's.
        wants_stats: whether head statistics are wanted.
    """

    rows: slice
    wants_stats: bool

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Arena:
        """Store the step's own entry of each sequence, `[batch, kv_heads, head_dim]`; what a layer's queries see, that entry included."""
        ...


@dataclass
class DecodePass:
    """One decode step: append the new entry of each sequence to its run, attend over it, keep the statistics.

    Sequences that want statistics and those that do not are computed apart, so
    that what one gets does not depend on what its neighbours want.

    Attributes:
        lanes: of all sequences; they know where this step's entries go.
        position: `int32 [batch]`, token index of each sequence's query.
        impl: which `decode_attention` implementation.
        stats: for each lane that wants them, per layer; filled by the step.
    """

    lanes: Sequence[Lane]
    position: torch.Tensor
    impl: str | None = None
    stats: dict[int, list[PackedStats]] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """See `AttentionPass`; one query token for each sequence."""
        del module, mask
        scale = scale_of(q, kwargs.get("scaling"))
        outs = [self._lane(number, lane, layer, q[:, :, 0], k[:, :, 0], v[:, :, 0], scale) for number, lane in enumerate(self.lanes)]
        return (outs[0] if len(outs) == 1 else torch.cat(outs))[:, None]

    def _lane(self, number: int, lane: Lane, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        rows = lane.rows
        arena = lane.append(layer, k[rows], v[rows])
        # Shapes and dtypes are those of the pool; to check them at each layer would cost a small step much of its time.
        out, stats = run(q[rows], arena, self.position[rows], scale, lane.wants_stats, self.impl)
        if stats is not None:
            self.stats.setdefault(number, []).append(stats)
        return out


def scale_of(q: torch.Tensor, scaling: float | None) -> float:
    """The factor on the scores: the model's own, or one over the root of the head size."""
    return float(scaling) if scaling is not None else float(q.shape[-1] ** -0.5)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    current, silenced = _ACTIVE.get(), _ABLATED.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if current is None:
        out: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    else:
        out = current.attend(layer, module, query, key, value, attention_mask, **kwargs)
    if silenced is not None:
        out = out.masked_fill(silenced[layer].to(out.device)[:, None], 0.0)
    return out, None


def install() -> None:
    """Register the function and its mask with transformers; harmless to repeat.

    Without a registered mask function transformers would pass no mask at all.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
