"""Scoring one answer while it is generated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect.types import LogitStats, PromptInfo, StepTrace
from introspect_probes.claim_probe import budget_features, is_reduced
from introspect_probes.features import kind_features
from introspect_probes.grammar import ClaimFinder
from introspect_probes.probe_set import ProbeSet
from introspect_probes.running_logits import RunningLogits, clipped
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, Guaranteed, HallucinationRisk, SpanSignal, Strategy, TokenSignal
from introspect_probes.tally import Tally
from introspect_probes.training_free import TrainingFreeScores
from introspect_probes.worlds.claims import CLAIM_KINDS, Claim

OUTSIDE = 0.5
"""Below this P(in domain) the answer carries a note that the prompt is outside what the model knows."""

_NOTE = "This question or picture is outside what the model was taught and the probes were fitted on; do not rely on the answer."
_KINDS = {kind: kind_features(kind).tolist() for kind in CLAIM_KINDS}


@dataclass(frozen=True)
class _Word:
    """A word whose reading row has not come: its step, its row, its other features, its claim."""

    step: StepTrace
    row: NDArray[np.float32]
    logits: list[float]
    place: list[float]
    claim: Claim | None


@dataclass(frozen=True)
class _Scored:
    """What is said of a word, and the answer with it."""

    tally: Tally
    risk: HallucinationRisk | None
    strategy: Strategy | None
    confidence: float


class ProbeSession:
    """A `Session` of a probe set.

    Every row is read once, for those statistics that a probe has a weight for, and every word scored once for good:
    values are those of `features.token_features` and `probe_set.answer_features`.

    Args:
        probes: the probe set.
        prompt: whose answer is scored.
        finder: tells where the answer makes claims.
        provisional: whether each word is scored at once too, before the row that reads it is here.
    """

    def __init__(self, probes: ProbeSet, prompt: PromptInfo, finder: ClaimFinder, *, provisional: bool = True) -> None:
        self.probes, self.prompt, self.finder, self.provisional = probes, prompt, finder, provisional
        self._in_domain = probes.in_domain(prompt)
        self._is_reduced = is_reduced(prompt)
        self._fallback = TrainingFreeScores(prompt)
        self._reader = probes.narrow
        self._fixed, self._budget = self._reader.fixed(prompt), [float(v) for v in budget_features(prompt)]
        self._numbers, self._tally = RunningLogits(), Tally()
        self._word: _Word | None = None
        self._confidence: float | None = None
        self._claims: list[tuple[Claim, HallucinationRisk, Strategy | None]] = []
        self._strategies: list[Strategy] = []
        self._text = ""

    def step(self, step: StepTrace) -> StepSignals:
        """See `Session`."""
        self._fallback.add(step)
        row = self._reader.row(step.heads, step.position, self.prompt) if step.heads is not None else None
        revised = self._close(row, step.logits)
        if step.logits is None:
            return StepSignals(None, revised)
        start = len(self._text)
        self._text += step.text
        logits, place = self._numbers.add(step)
        if row is None:
            return StepSignals(None, revised)
        if step.is_special:
            return StepSignals(TokenSignal(step.index, self._confidence, None, None, is_final=False), revised)
        self._word = _Word(step, row, logits, place, self.finder.first_from(self._text, start) if step.text else None)
        if not self.provisional:
            return StepSignals(None, revised)
        said = self._score(self._word, self._alone(self._word), logits)
        return StepSignals(TokenSignal(step.index, said.confidence, said.risk, said.strategy, is_final=False), revised)

    def finish(self) -> AnswerSignal:
        """See `Session`."""
        self._close(None, None)
        answer = self._fallback.finish()
        return AnswerSignal(
            confidence=self._confidence,
            hallucination_risk=self._any_false([risk.risk for _, risk, _ in self._claims]),
            strategy=self.probes.strategy.mean_state(self._strategies) if self.probes.strategy is not None and self._strategies else None,
            spans=None
            if self.probes.claims is None
            else tuple(
                SpanSignal(claim.start, claim.end, self._text[claim.start : claim.end], risk.risk, strategy)
                for claim, risk, strategy in self._claims
            ),
            calibrated=self.probes.mismatch is None,
            probe_set=self.probes.name,
            in_domain=self._in_domain,
            note=_NOTE if self._in_domain is not None and self._in_domain < OUTSIDE else None,
            scores=answer.scores,
            mismatch=self.probes.mismatch,
            guarantee=self._guarantee(self._confidence),
            feature_distance=self._distance(),
        )

    def _close(self, row: NDArray[np.float32] | None, following: LogitStats | None) -> TokenSignal | None:
        """The last word on the previous word, now that its reading row is here, or that none will come."""
        word, self._word = self._word, None
        if word is None:
            return None
        logits = word.logits if following is None else [*word.logits[:-1], clipped(following.entropy)]
        said = self._score(word, row if row is not None else self._alone(word), logits)
        self._tally, self._confidence = said.tally, said.confidence
        if word.claim is not None and said.risk is not None:
            self._claims.append((word.claim, said.risk, said.strategy))
        if said.strategy is not None:
            self._strategies.append(said.strategy)
        return TokenSignal(word.step.index, said.confidence, said.risk, said.strategy, is_final=True)

    def _alone(self, word: _Word) -> NDArray[np.float32]:
        """What stands for a word's reading row while there is none: the row that predicted it."""
        if word.step.heads is None:
            raise ValueError(f"expected the statistics of step {word.step.index}, which had them when it came")
        return self._reader.row(word.step.heads, word.step.position + 1, self.prompt)

    def _score(self, word: _Word, reading: NDArray[np.float32], logits: list[float]) -> _Scored:
        values = self._reader.token(word.row, reading, self._fixed)
        probes = self._reader.probes
        risk, strategy = None, None
        if word.claim is not None:
            if self.probes.claims is not None:
                risk = self._risk(values[probes["internal"].heads], word, logits)
            if self.probes.strategy is not None:
                states = probes["strategy"].logits(values[probes["strategy"].heads])
                strategy = self.probes.strategy.state(self.probes.strategy.calibrated(states))
        kind, known = (word.claim.kind, risk.risk) if word.claim is not None and risk is not None else (None, None)
        tally = self._tally.plus(values[probes["confidence"].heads], kind, known)
        logit = probes["confidence"].logits(np.concatenate((tally.means, tally.tail(logits, self._budget))))[0]
        confidence = self.probes.confidence_calibration.of(float(logit), is_reduced=self._is_reduced)
        return _Scored(tally, risk, strategy, confidence if self._in_domain is None else confidence * self._in_domain)

    def _risk(self, heads: NDArray[np.float32], word: _Word, logits: list[float]) -> HallucinationRisk | None:
        claims, claim = self.probes.claims, word.claim
        if claims is None or claim is None:
            return None
        probes, kind = self._reader.probes, _KINDS[claim.kind]
        features = np.concatenate((heads, np.array([*logits, *kind], dtype=np.float32)))
        internal = float(probes["internal"].logits(features)[0])
        prior = float(probes["prior"].logits(np.array([*word.place, *kind, *self._budget], dtype=np.float32))[0])
        return claims.combined(internal, prior, is_reduced=self._is_reduced, level=self.finder.level)

    def _any_false(self, risks: list[float]) -> float | None:
        if not risks or self.probes.claims is None:
            return None
        return self.probes.claims.any_false(risks, reduced=self._is_reduced)

    def _distance(self) -> float | None:
        """How far the answer's head features are from those of the fit."""
        probe = self._reader.probes["confidence"]
        count = len(probe.heads)
        if not self._tally.words or not count:
            return None
        deviations = np.clip((self._tally.means - probe.mean[:count]) / probe.scale[:count], -8, 8)
        return float(np.sqrt(np.mean(deviations**2)))

    def _guarantee(self, confidence: float | None) -> Guaranteed | None:
        """Whether the answer is over the guaranteed threshold; a probe set made to score another model guarantees nothing."""
        if self.probes.guarantee is None or confidence is None or self.probes.mismatch is not None:
            return None
        return self.probes.guarantee.of(confidence)
