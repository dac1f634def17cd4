"""Prefill in chunks, layer by layer: every layer reads the prompt a chunk at a time before the next layer begins.

Other engines let all layers read a chunk before the next chunk, and hold the
whole prompt's keys and values of every layer until the last one. This order
bounds each piece of work just as well and needs those of one layer only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from introspect.stepwise import Pause


def borders(mask: torch.Tensor | None, tokens: int, chunk: int) -> list[int]:
    """Where chunks end: at least `chunk` tokens each but the last, and none before a token that an earlier one attends to.

    Args:
        mask: `bool [batch, 1, tokens, tokens]`, true where attention goes; causal where there is none.
        tokens: of the prompt.
        chunk: tokens of a chunk.
    """
    if mask is None:
        return [*range(chunk, tokens, chunk), tokens]
    columns = torch.arange(tokens, device=mask.device)
    reach = torch.where(mask, columns, -1).amax((0, 1, 3)).cummax(0).values.tolist()
    ends, begin = [], 0
    for end in range(1, tokens):
        if end - begin >= chunk and reach[end - 1] < end:
            ends.append(end)
            begin = end
    return [*ends, tokens]


@contextmanager
def chunked_layers(layers: torch.nn.ModuleList, tokens: int, chunk: int, pause: Pause, is_prefill: Any) -> Iterator[None]:
    """Make each decoder layer read a prompt in chunks, for the duration of the context.

    Only the modules' own `forward` is set, and taken away again; calls for which `is_prefill()` is false
    (a decode step in between) go through untouched.

    Args:
        layers: the language model's.
        tokens: of the prompt.
        chunk: tokens of a chunk.
        pause: called after each chunk of each layer with its tokens.
        is_prefill: tells whether the current call belongs to this prompt.
    """
    try:
        for layer in layers:
            layer.forward = _Chunked(layer.forward, tokens, chunk, pause, is_prefill)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Chunked:
    def __init__(self, forward: Any, tokens: int, chunk: int, pause: Pause, is_prefill: Any) -> None:
        self._forward, self._tokens, self._chunk, self._pause, self._is_prefill = forward, tokens, chunk, pause, is_prefill

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._is_prefill():
            return self._forward(hidden_states, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        ends = borders(mask, self._tokens, self._chunk) if self._can_cut(args, kwargs) else [self._tokens]
        parts, begin = [], 0
        for end in ends:
            out = self._forward(hidden_states[:, begin:end], *args, **self._cut(kwargs, begin, end))
            parts.append(out[0] if isinstance(out, tuple) else out)
            self._pause(end - begin)
            begin = end
        whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    def _can_cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether every tensor that goes with the tokens is one whose token axis is known; if not, the layer runs whole."""
        mask = kwargs.get("attention_mask")
        known = {"attention_mask", "position_ids", "position_embeddings"}
        others = [value for name, value in kwargs.items() if name not in known and isinstance(value, (torch.Tensor, tuple, list))]
        return not args and not others and (mask is None or (mask.dtype == torch.bool and mask.dim() == 4))

    def _cut(self, kwargs: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
        cut = dict(kwargs)
        if begin == 0 and end == self._tokens:
            return cut
        if cut.get("attention_mask") is not None:
            cut["attention_mask"] = cut["attention_mask"][:, :, begin:end, :end]
        if cut.get("position_ids") is not None:
            cut["position_ids"] = cut["position_ids"][..., begin:end]
        if cut.get("position_embeddings") is not None:
            cut["position_embeddings"] = tuple(table[..., begin:end, :] for table in cut["position_embeddings"])
        return cut
