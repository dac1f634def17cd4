"""Choosing the next token, and what its distribution looked like."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from introspect.answer import Answer
from introspect.errors import RequestError
from introspect.types import LogitStats, SamplingParams

NUM_CANDIDATES = 20


def choose(logprobs: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """One token id from `logprobs [vocab]`: greedy at temperature 0, else sampled from the nucleus."""
    if params.temperature <= 0:
        return int(logprobs.argmax())
    probabilities = torch.softmax(logprobs / params.temperature, -1)
    if params.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= params.top_p
        probabilities = probabilities.index_fill(0, order[outside], 0.0)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))


def choose_all(logprobs: torch.Tensor, answers: Sequence[Answer]) -> tuple[list[int], dict[int, Exception]]:
    """The next token of each answer, from `logprobs [batch, vocab]`.

    Returns:
        The tokens, and by row why none could be drawn (the row's token then stands for nothing).
    """
    tokens: list[int] = logprobs.argmax(-1).tolist()
    problems: dict[int, Exception] = {}
    for row, answer in enumerate(answers):
        sampling = answer.prompt.request.sampling
        if answer.is_feeding or answer.finish is not None:
            continue
        if answer.forced is not None:
            token = int(answer.forced[len(answer.tokens)])
            if 0 <= token < logprobs.shape[-1]:
                tokens[row] = token
            else:
                problems[row] = RequestError(f"a token must be one of {logprobs.shape[-1]}, got {token}")
        elif sampling.temperature > 0:
            try:
                tokens[row] = choose(logprobs[row], sampling, answer.generator)
            except Exception as problem:  # noqa: BLE001 - it ends this answer and no other
                problems[row] = problem
    return tokens, problems


def logit_stats(logprobs: torch.Tensor, tokens: list[int]) -> list[LogitStats]:
    """Statistics of each row of `logprobs [batch, vocab]` (before temperature) at the chosen tokens."""
    top = logprobs.topk(min(NUM_CANDIDATES, logprobs.shape[-1]), dim=-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).tolist()
    chosen = logprobs.gather(-1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0].tolist()
    values, ids = top.values.tolist(), top.indices.tolist()
    return [
        LogitStats(chosen[row], entropy[row], values[row][0] - values[row][1], tuple(ids[row]), tuple(values[row]))
        for row in range(len(tokens))
    ]
