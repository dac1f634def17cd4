"""The `logits` and `place` features of an answer's tokens, kept up to date token by token."""

from __future__ import annotations

import math
from collections import Counter

from introspect.types import StepTrace

_FLOOR = -20.0
_LIMIT = 30.0


class RunningLogits:
    """Follows an answer; values are those of `features.logit_features` and `features.place_features`."""

    def __init__(self) -> None:
        self._said: Counter[int] = Counter()
        self._count, self._previous = 0, 0.0
        self._logprobs, self._entropies = 0.0, 0.0
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, step: StepTrace) -> tuple[list[float], list[float]]:
        """Features of the next token, `(logits, place)`; as long as the token after it is unknown its own entropy stands for that one's.

        Raises:
            ValueError: a step without logits, which is no token.
        """
        own = step.logits
        if own is None:
            raise ValueError(f"expected a token, got the closing step {step.index}")
        self._count += 1
        self._logprobs += own.logprob
        self._entropies += own.entropy
        self._lowest, self._highest = min(self._lowest, own.logprob), max(self._highest, own.entropy)
        top = [*own.top_logprobs[:5], _FLOOR, _FLOOR, _FLOOR, _FLOOR, _FLOOR][:5]
        means = self._logprobs / self._count, self._lowest, self._entropies / self._count, self._highest
        values = [own.logprob, own.entropy, own.margin, *top, *means, self._previous, own.entropy]
        self._previous = own.logprob
        repetition, index = self._said[step.token_id], self._count - 1
        self._said[step.token_id] += 1
        values = [value if -_LIMIT <= value <= _LIMIT else clipped(value) for value in values]
        return values, [index, math.log1p(index), min(repetition, 4), index == 0]


def clipped(value: float) -> float:
    """Within what a feature may be."""
    return min(max(value, -_LIMIT), _LIMIT)
