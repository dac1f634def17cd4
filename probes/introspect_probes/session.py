"""Scoring one answer while it is generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from introspect.types import PromptInfo, StepTrace
from introspect_probes.claim_probe import is_reduced
from introspect_probes.features import TokenFeatures, token_features
from introspect_probes.grammar import ClaimFinder
from introspect_probes.probe_set import ProbeSet, answer_features
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, Guaranteed, HallucinationRisk, SpanSignal, Strategy, TokenSignal
from introspect_probes.training_free import TrainingFreeScores
from introspect_probes.worlds.claims import Claim

OUTSIDE = 0.5
"""Below this P(in domain) the answer carries a note that the prompt is outside what the model knows."""

_NOTE = "This question or picture is outside what the model was taught and the probes were fitted on; do not rely on the answer."


@dataclass
class _Scored:
    """What is known of one token: its features, its claim, its signals."""

    features: TokenFeatures
    claim: Claim | None = None
    risk: HallucinationRisk | None = None
    strategy: Strategy | None = None


@dataclass
class ProbeSession:
    """A `Session` of a probe set.

    Args:
        probes: the probe set.
        prompt: whose answer is scored.
        finder: tells where the answer makes claims.
    """

    probes: ProbeSet
    prompt: PromptInfo
    finder: ClaimFinder
    _steps: list[StepTrace] = field(default_factory=list)
    _tokens: list[_Scored] = field(default_factory=list)
    _text: str = ""

    def __post_init__(self) -> None:
        """Work out what needs the prompt alone."""
        self._in_domain = self.probes.in_domain(self.prompt)
        self._is_reduced = is_reduced(self.prompt)
        self._fallback = TrainingFreeScores(self.prompt)

    def step(self, step: StepTrace) -> StepSignals:
        """See `Session`."""
        self._fallback.step(step)
        revised = self._revise(step)
        if step.logits is None:
            return StepSignals(None, revised)
        start = len(self._text)
        self._steps.append(step)
        self._text += step.text
        features = token_features(self._steps, step.index, None)
        if features is None:
            return StepSignals(None, revised)
        claim = None
        if step.text and not step.is_special:
            claim = next((c for c in self.finder.find(self._text) if start <= c.start < len(self._text)), None)
        if not step.is_special:
            self._tokens.append(self._score(features, claim))
        return StepSignals(self._signal(step.index, is_final=False), revised)

    def finish(self) -> AnswerSignal:
        """See `Session`."""
        answer = self._fallback.finish()
        claims = [(t.claim, t.risk, t.strategy) for t in self._tokens if t.claim is not None and t.risk is not None]
        strategies = [t.strategy for t in self._tokens if t.strategy is not None]
        confidence = self._confidence()
        return AnswerSignal(
            confidence=confidence,
            hallucination_risk=self._any_false([risk.risk for _, risk, _ in claims]),
            strategy=self.probes.strategy.mean_state(strategies) if self.probes.strategy is not None and strategies else None,
            spans=None
            if self.probes.claims is None
            else tuple(
                SpanSignal(claim.start, claim.end, self._text[claim.start : claim.end], risk.risk, strategy)
                for claim, risk, strategy in claims
            ),
            calibrated=self.probes.mismatch is None,
            probe_set=self.probes.name,
            in_domain=self._in_domain,
            note=_NOTE if self._in_domain is not None and self._in_domain < OUTSIDE else None,
            scores=answer.scores,
            mismatch=self.probes.mismatch,
            guarantee=self._guarantee(confidence),
        )

    def _revise(self, step: StepTrace) -> TokenSignal | None:
        """The last word on the previous token, now that its reading row is here."""
        if not self._steps or self._steps[-1].is_special or not self._tokens:
            return None
        index = self._steps[-1].index
        features = token_features([*self._steps], index, step)
        if features is not None:
            self._tokens[-1] = self._score(features, self._tokens[-1].claim)
        return self._signal(index, is_final=True)

    def _score(self, features: TokenFeatures, claim: Claim | None) -> _Scored:
        if claim is None:
            return _Scored(features)
        claims, strategy = self.probes.claims, self.probes.strategy
        return _Scored(
            features,
            claim,
            None if claims is None else claims.risk(features, claim.kind, self.prompt, self.finder.level),
            None if strategy is None else strategy.state(strategy.probabilities(features.heads)),
        )

    def _signal(self, index: int, *, is_final: bool) -> TokenSignal:
        last = self._tokens[-1] if self._tokens and not self._steps[-1].is_special else None
        return TokenSignal(
            index, self._confidence(), last.risk if last is not None else None, last.strategy if last is not None else None, is_final
        )

    def _confidence(self) -> float | None:
        if not self._tokens:
            return None
        claims = [t for t in self._tokens if t.claim is not None and t.risk is not None]
        features = answer_features(
            [t.features for t in self._tokens],
            [t.risk.risk for t in claims if t.risk is not None],
            [t.claim.kind for t in claims if t.claim is not None],
            self.prompt,
        )
        logit = float(self.probes.confidence.logits(features)[0])
        confidence = float(self.probes.confidence_calibration(logit, self._is_reduced))
        return confidence if self._in_domain is None else confidence * self._in_domain

    def _any_false(self, risks: list[float]) -> float | None:
        if not risks or self.probes.claims is None:
            return None
        return self.probes.claims.any_false(risks, reduced=self._is_reduced)

    def _guarantee(self, confidence: float | None) -> Guaranteed | None:
        """Whether the answer is over the guaranteed threshold; a probe set made to score another model guarantees nothing."""
        if self.probes.guarantee is None or confidence is None or self.probes.mismatch is not None:
            return None
        return self.probes.guarantee.of(confidence)
