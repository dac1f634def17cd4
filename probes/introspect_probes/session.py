"""Scoring one answer while it is generated."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import NamedTuple

from introspect.types import HeadRow, PromptInfo, StepTrace
from introspect_probes import compiled as at
from introspect_probes.claim_probe import is_reduced
from introspect_probes.grammar import ClaimFinder
from introspect_probes.probe_set import ProbeSet
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, Guaranteed, HallucinationRisk, SpanSignal, Strategy, TokenSignal
from introspect_probes.training_free import TrainingFreeScores
from introspect_probes.worlds.claims import CLAIM_KINDS, Claim

OUTSIDE = 0.5
"""Below this P(in domain) the answer carries a note that the prompt is outside what the model knows."""

_NOTE = "This question or picture is outside what the model was taught and the probes were fitted on; do not rely on the answer."
_KINDS = {kind: number for number, kind in enumerate(CLAIM_KINDS)}
_NO_CLAIM, _NOT_KNOWN = -1, math.nan
_FLOOR = (-20.0,) * 5
_NO_WORD = (0.0, 0.0, 0.0, *_FLOOR, 0)
_arrays = attrgetter(*at.ROW)


class _Word(NamedTuple):
    """A word whose reading row has not come: its place among the tokens, the row that predicted it and where that stands, its claim."""

    number: int
    heads: HeadRow
    position: int
    claim: Claim | None

    @property
    def kind(self) -> int:
        """Its claim's number among the kinds."""
        return _KINDS[self.claim.kind] if self.claim is not None else _NO_CLAIM


class ProbeSession:
    """A `Session` of a probe set.

    Every row is read once, for those statistics that a probe has a weight for, and every word scored once for good, all
    in one compiled call (see `compiled.py`): values are those of `features.token_features` and `probe_set.answer_features`.

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
        self._narrow = probes.narrow(is_reduced=self._is_reduced)
        self._numbers = self._narrow.answer(prompt, self._in_domain)
        self._compiled, self._own = at.compiled(), (*self._narrow.tables, *self._numbers)
        self._said: dict[int, int] = {}
        self._word: _Word | None = None
        self._last = _NOT_KNOWN
        """Confidence as it was worked out last, provisional or not."""
        self._confidence: float | None = None
        self._claims: list[tuple[Claim, HallucinationRisk, Strategy | None]] = []
        self._strategies: list[Strategy] = []
        self._text = ""

    def step(self, step: StepTrace) -> StepSignals:
        """See `Session`."""
        self._fallback.add(step)
        revised = self._advance(step)
        if step.logits is None:
            return StepSignals(None, revised)
        start = len(self._text)
        self._text += step.text
        if step.heads is None:
            return StepSignals(None, revised)
        if step.is_special:
            return StepSignals(TokenSignal(step.index, self._confidence, None, None, is_final=False), revised)
        claim = self.finder.first_from(self._text, start) if step.text else None
        self._word = _Word(step.index, step.heads, step.position, claim)
        if not self.provisional:
            return StepSignals(None, revised)
        self._score_alone(self._word, 0, _NOT_KNOWN)
        return StepSignals(self._told(self._word, is_final=False), revised)

    def finish(self) -> AnswerSignal:
        """See `Session`."""
        if self._word is not None:
            self._score_alone(self._word, at.COMMIT, _NOT_KNOWN)
            self._close(self._word)
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
            feature_distance=self._narrow.distance(self._numbers),
        )

    def _advance(self, step: StepTrace) -> TokenSignal | None:
        """Take a step's numbers; the last word on the previous word, now that its reading row is here, or that none will come."""
        held, logits, do, kind = self._word, step.logits, 0, _NO_CLAIM
        following = logits.entropy if logits is not None else _NOT_KNOWN
        if step.heads is not None:
            do = at.READ | at.SHIFT
            if held is not None:
                do, kind = do | at.SCORE | at.COMMIT, held.kind
        elif held is not None:
            self._score_alone(held, at.COMMIT, following)
        word: tuple[float, ...] = _NO_WORD
        if logits is not None:
            do |= at.WORD
            top = logits.top_logprobs[:5]
            said = self._said.get(step.token_id, 0)
            self._said[step.token_id] = said + 1
            word = (logits.logprob, logits.entropy, logits.margin, *(top if len(top) == 5 else (*top, *_FLOOR)[:5]), said)
        row = _arrays(step.heads) if step.heads is not None else self._narrow.no_row
        self._last = self._compiled(*self._own, *row, step.position, do, kind, following, *word)
        return self._close(held) if held is not None else None

    def _score_alone(self, word: _Word, do: int, following: float) -> None:
        """Score a word while it has no reading row: the row that predicted it stands for that."""
        row, do = _arrays(word.heads), at.READ | at.SCORE | do
        self._last = self._compiled(*self._own, *row, word.position + 1, do, word.kind, following, *_NO_WORD)

    def _close(self, word: _Word) -> TokenSignal:
        """The last word on a word that has just been scored for good."""
        self._word = None
        said = self._told(word, is_final=True)
        self._confidence = said.confidence
        if word.claim is not None and said.hallucination is not None:
            self._claims.append((word.claim, said.hallucination, said.strategy))
        if said.strategy is not None:
            self._strategies.append(said.strategy)
        return said

    def _told(self, word: _Word, *, is_final: bool) -> TokenSignal:
        """What was said last, of a word."""
        if word.claim is None:
            return TokenSignal(word.number, self._last, None, None, is_final)
        state, probes = self._numbers.state, self.probes
        risk, internal, prior = state[at.RISK : at.PRIOR + 1].tolist()
        return TokenSignal(
            word.number,
            self._last,
            HallucinationRisk(risk, internal, prior, self.finder.level) if probes.claims is not None else None,
            probes.strategy.state(state[self._narrow.states]) if probes.strategy is not None else None,
            is_final,
        )

    def _any_false(self, risks: list[float]) -> float | None:
        if not risks or self.probes.claims is None:
            return None
        return self.probes.claims.any_false(risks, reduced=self._is_reduced)

    def _guarantee(self, confidence: float | None) -> Guaranteed | None:
        """Whether the answer is over the guaranteed threshold; a probe set made to score another model guarantees nothing."""
        if self.probes.guarantee is None or confidence is None or self.probes.mismatch is not None:
            return None
        return self.probes.guarantee.of(confidence, is_reduced=self._is_reduced)
