"""Choosing the next tokens, and what their distributions looked like: on the model's device, with no value read by the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from introspect.types import LogitStats

NUM_CANDIDATES = 20
UNFORCED = -1
"""Stands where no token is forced."""


@dataclass(frozen=True)
class Drawing:
    """How rows draw their tokens.

    Attributes:
        temperature: `float64 [batch]`, 0 is greedy.
        top_p: `float64 [batch]`, the smallest set of tokens whose probability reaches it is kept.
        draw: `float64 [batch]`, at least 0 and below 1: where in the distribution a row's token lies.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    draw: torch.Tensor


def choose(logprobs: torch.Tensor, forced: torch.Tensor | None, drawing: Drawing | None) -> torch.Tensor:
    """The next token of each row of `logprobs [batch, vocab]`. A row's token depends on that row alone.

    Args:
        logprobs: before temperature.
        forced: `int64 [batch]`, the token to take whatever the model says, or `UNFORCED`; one that does not exist is not taken.
            Without it none is forced.
        drawing: how the others are drawn; without it they are greedy.

    Returns:
        `int64 [batch]`.
    """
    tokens = logprobs.argmax(-1)
    if drawing is not None:
        tokens = torch.where(drawing.temperature > 0, _drawn(logprobs, drawing), tokens)
    if forced is None:
        return tokens
    return torch.where((forced >= 0) & (forced < logprobs.shape[-1]), forced, tokens)


def _drawn(logprobs: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    """Tokens by inverse transform from the nucleus; rows without a temperature get some token."""
    temperature = torch.where(drawing.temperature > 0, drawing.temperature, 1.0).to(logprobs.dtype)
    probabilities = torch.softmax(logprobs / temperature[:, None], -1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = (ordered.cumsum(-1) - ordered >= drawing.top_p[:, None]) & (drawing.top_p < 1)[:, None]
    nucleus = probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
    reached = nucleus.double().cumsum(-1)
    whole = reached[:, -1:]
    point = torch.minimum(drawing.draw[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(reached, point, right=True)[:, 0].clamp(max=logprobs.shape[-1] - 1)


def measure(logprobs: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `logit_stats` needs of `logprobs [batch, vocab]` (before temperature) at the chosen tokens.

    Returns:
        `int64 [batch, 1 + candidates]`, the token and the candidates; `float32 [batch, 2 + candidates]`, the token's
        log-probability, the distribution's entropy (nats) and the candidates' log-probabilities.
    """
    top = logprobs.topk(min(NUM_CANDIDATES, logprobs.shape[-1]), dim=-1)
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)  # what cannot be adds nothing, and not 0 times infinity
    entropy = -(logprobs.exp() * finite).sum(-1, keepdim=True)
    chosen = logprobs.gather(-1, tokens[:, None])
    return torch.cat([tokens[:, None], top.indices], -1), torch.cat([chosen, entropy, top.values], -1)


def logit_stats(ids: Sequence[int], reals: Sequence[float]) -> LogitStats:
    """One row of `measure`, read by the host."""
    return LogitStats(reals[0], reals[1], reals[2] - reals[3], tuple(ids[1:]), tuple(reals[2:]))
