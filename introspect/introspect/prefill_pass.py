"""Attention over a prompt while it is read, and what each layer of it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from introspect.attention import scale_of


@dataclass(frozen=True)
class LayerCache:
    """What one layer's attention of a prompt leaves behind.

    Attributes:
        k: `[batch, kv_heads, tokens, head_dim]`.
        v: likewise.
        q: `[batch, heads, window, head_dim]`, the last queries.
        scale: the factor on the scores.
        mask: `bool [batch, 1, window, tokens]`, true where those queries attend; `None` where that is all before them.
    """

    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor
    scale: float
    mask: torch.Tensor | None = None


class PromptReadError(BaseException):
    """Unwinds the forward call over a prompt: the last layer's keys and values are there, and nobody reads what would come of them."""


@dataclass
class PrefillPass:
    """Ordinary attention over a prompt, whole or in chunks; each layer's keys, values and last queries are given away when it is done.

    Attributes:
        tokens: of the prompt.
        window: how many of the last queries to give.
        finish: takes a layer's number and what it leaves. The pass keeps nothing of it.
        last: the layer after which nothing is wanted; at its end the call is unwound by a `PromptReadError`.
    """

    tokens: int
    window: int
    finish: Callable[[int, LayerCache], None]
    last: int | None = None
    _seen: int = 0
    _k: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _v: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _q: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _mask: torch.Tensor | None = None

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
        begin, end = self._seen, self._seen + q.shape[2]
        self._gather(q, k, v, end)
        keys, values = self._k, self._v
        if mask is not None:
            self._gather_mask(mask)
        if mask is None and begin > 0:
            mask = torch.arange(end, device=q.device) <= torch.arange(begin, end, device=q.device)[:, None]
            mask = mask.expand(q.shape[0], 1, -1, -1)
        out: torch.Tensor
        if layer == self.last:
            out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
        else:
            out = sdpa_attention_forward(module, q, keys[:, :, :end], values[:, :, :end], mask, **kwargs)[0]
        if end == self.tokens:
            done = LayerCache(keys, values, self._q, scale_of(q, kwargs.get("scaling")), self._mask)
            self._seen, self._k, self._v, self._q = 0, *(torch.empty(0) for _ in range(3))
            self._mask = None
            self.finish(layer, done)
            if layer == self.last:
                raise PromptReadError
        return out

    def _gather(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, end: int) -> None:
        """Add a chunk to what was seen of this layer."""
        last = q[:, :, -self.window :]
        if self._seen == 0 and end == self.tokens:
            self._k, self._v, self._q = k, v, last.clone()
        else:
            if self._seen == 0:
                self._k, self._v = (x.new_empty(*x.shape[:2], self.tokens, x.shape[3]) for x in (k, v))
                self._q = last[:, :, :0]
            self._k[:, :, self._seen : end], self._v[:, :, self._seen : end] = k, v
            self._q = torch.cat([self._q, last], 2)[:, :, -self.window :].clone()
        self._seen = end

    def _gather_mask(self, mask: torch.Tensor) -> None:
        """Add the last rows of a chunk's mask, `bool [batch, 1, chunk, tokens so far]`, to those of the window."""
        rows = mask[:, :, -self.window :]
        rows = torch.nn.functional.pad(rows, (0, self.tokens - rows.shape[-1]))
        self._mask = rows if self._mask is None else torch.cat([self._mask, rows], 2)[:, :, -self.window :]
