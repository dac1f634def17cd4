"""The attention function that the runtime registers with transformers.

Only the language model uses it. What it does is set by the pass that is
active in the current context: a prefill records keys, values and the last
queries; a decode step attends over the KV arena and keeps the head statistics.
With no pass active it is plain SDPA, so that the model still works by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from introspect_kernels import Arena, HeadStats, decode_attention

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


@dataclass
class PrefillPass:
    """Ordinary causal attention that remembers keys, values and the last `window` queries of each layer.

    Attributes:
        window: how many of the last queries to keep.
        k: per layer `[batch, kv_heads, tokens, head_dim]`.
        v: likewise.
        q: per layer `[batch, heads, window, head_dim]`.
        scale: the factor on the scores, per layer.
    """

    window: int
    k: dict[int, torch.Tensor] = field(default_factory=dict)
    v: dict[int, torch.Tensor] = field(default_factory=dict)
    q: dict[int, torch.Tensor] = field(default_factory=dict)
    scale: dict[int, float] = field(default_factory=dict)

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
        """See `AttentionPass`."""
        self.k[layer], self.v[layer] = k, v
        self.q[layer] = q[:, :, -self.window :].clone()
        self.scale[layer] = scale_of(q, kwargs.get("scaling"))
        out: torch.Tensor = sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]
        return out


@dataclass
class DecodePass:
    """One decode step: append the new entry of each sequence to the arenas, attend over them, keep the statistics.

    Attributes:
        arenas: one per layer.
        position: `int32 [batch]`, token index of each sequence's query.
        segment: `uint8 [batch]`, where each query token came from.
        stats: per layer, filled by the step.
    """

    arenas: list[Arena]
    position: torch.Tensor
    segment: torch.Tensor
    impl: str | None = None
    stats: dict[int, HeadStats] = field(default_factory=dict)

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
        arena = self.arenas[layer]
        arena.append(k[:, :, 0], v[:, :, 0], self.position, self.segment)
        out, stats = decode_attention(q[:, :, 0], arena, self.position, scale_of(q, kwargs.get("scaling")), impl=self.impl)
        if stats is not None:
            self.stats[layer] = stats
        return out[:, None]


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
    running, silenced = _ACTIVE.get(), _ABLATED.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if running is None:
        out: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    else:
        out = running.attend(layer, module, query, key, value, attention_mask, **kwargs)
    if silenced is not None:
        out = out.masked_fill(silenced[layer].to(out.device)[:, None], 0.0)
    return out, None


def install() -> None:
    """Register the function and its mask with transformers; harmless to repeat.

    Without a registered mask function transformers would pass no mask at all.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
