"""What the confidence probe knows of an answer so far, kept up to date token by token instead of worked out anew."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect_probes.worlds.claims import CLAIM_KINDS

_NO_KINDS = (0.0,) * len(CLAIM_KINDS)


@dataclass(frozen=True)
class Tally:
    """Sums over an answer's words and claims; `probe_set.answer_features` of the same answer is `means` and `tail`.

    Attributes:
        sums: of the confidence probe's head features, `[columns]`; a number before the first word.
        words: how many words there are.
        claims: how many of them decide a claim whose risk is known.
        largest: risk of those.
        total: sum of their risks.
        all_true: sum of ln(1 - risk).
        kinds: ln(1 + claims) of each of `CLAIM_KINDS`.
    """

    sums: NDArray[np.float64] | float = 0.0
    words: int = 0
    claims: int = 0
    largest: float = 0.0
    total: float = 0.0
    all_true: float = 0.0
    kinds: tuple[float, ...] = _NO_KINDS

    def plus(self, heads: NDArray[np.floating], kind: str | None, risk: float | None) -> Tally:
        """With one word more: its head features, and where it decides a claim, of which kind and with which risk."""
        sums: NDArray[np.float64] = np.asarray(self.sums + heads, dtype=np.float64)
        if kind is None or risk is None:
            return Tally(sums, self.words + 1, self.claims, self.largest, self.total, self.all_true, self.kinds)
        said = zip(CLAIM_KINDS, self.kinds, strict=True)
        kinds = tuple(math.log(math.exp(value) + 1) if kind == known else value for known, value in said)
        all_true = self.all_true + math.log1p(-min(max(risk, 1e-4), 1 - 1e-4))
        return Tally(sums, self.words + 1, self.claims + 1, max(self.largest, risk), self.total + risk, all_true, kinds)

    @property
    def means(self) -> NDArray[np.float32]:
        """Mean head features of the words."""
        return np.asarray(self.sums / self.words, dtype=np.float32)

    def tail(self, last: list[float], budget: list[float]) -> NDArray[np.float32]:
        """What follows the head features: `probe_set.answer_tail`.

        Args:
            last: logit features of the last word.
            budget: `claim_probe.budget_features`.
        """
        mean = self.total / self.claims if self.claims else 0.0
        any_false = math.log(-math.expm1(min(self.all_true, -1e-6)))
        risks = (self.largest, mean, self.all_true, any_false, self.claims, math.log1p(self.words))
        return np.array([*last, *self.kinds, *risks, *budget], dtype=np.float32)
