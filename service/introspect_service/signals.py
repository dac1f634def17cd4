"""The signals as clients and consumers of the stream see them; what is not known is left out, never invented.

Meanings are DESIGN.md's ("Meaning") and those of `introspect_probes.signals`.
Numbers are rounded to six digits after the point.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from introspect.types import EffectiveBudget
from introspect_probes.signals import AnswerSignal, SpanSignal, Strategy, StrategyLabel, TokenSignal
from introspect_service.schemas import IntrospectionOptions

ALL_SIGNALS = IntrospectionOptions()


def rounded(value: float | None) -> float | None:
    """`value` to six digits after the point; nothing where it is not a finite number, which JSON cannot carry."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


class Sparse(BaseModel):
    """A model whose absent fields are absent from its JSON too."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    @model_serializer(mode="wrap")
    def _leave_out_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class StrategyState(Sparse):
    """What the model leaned on: the most probable state, all probabilities, and a conformal set."""

    label: StrategyLabel
    probabilities: dict[StrategyLabel, float]
    set: tuple[StrategyLabel, ...]


class TokenIntrospection(Sparse):
    """The signals of one token.

    Attributes:
        confidence: P(the answer is correct | what was seen so far).
        hallucination_risk: P(the claim decided here is false); absent on tokens that decide nothing.
        internal: what attention and logits say of it, at equal position and repetition.
        prior: what position and repetition alone say of it.
        kind: `claim` where claims can be told apart, else `token`.
        strategy: absent on tokens that decide nothing.
        final: whether the row that reads this token has been seen; always true over HTTP.
    """

    confidence: float | None = None
    hallucination_risk: float | None = None
    internal: float | None = None
    prior: float | None = None
    kind: Literal["claim", "token"] | None = None
    strategy: StrategyState | None = None
    final: bool


class SpanIntrospection(Sparse):
    """One claim: `start` and `end` are character offsets into the answer's text."""

    start: int
    end: int
    text: str
    hallucination_risk: float
    strategy: StrategyState | None = None


class BudgetReport(Sparse):
    """Mean KV entries per KV head of the prompt: what was asked for (`nominal`) and what was kept (`effective`)."""

    policy: str
    nominal: float
    effective: float
    prompt_tokens: int


class GuaranteeReport(Sparse):
    """Whether the answer's confidence reaches the threshold over which at most `target_risk` of answers are wrong.

    Attributes:
        accepted: whether it does.
        threshold: the confidence.
        target_risk: largest share of wrong answers among the accepted.
        delta: chance that the threshold does not keep this.
    """

    accepted: bool
    threshold: float
    target_risk: float
    delta: float


class AnswerIntrospection(Sparse):
    """The signals of a whole answer.

    Attributes:
        id: the completion's id; the events of the stream have it as their `subject`.
        confidence: P(the answer is correct).
        hallucination_risk: P(some claim of it is false).
        strategy: of the answer as a whole.
        calibrated: whether a probe set fitted for this model, prompt format and budget says it.
        probe_set: its name.
        spans: the claims of the answer.
        effective_budget: the KV budget.
        scores: named training-free values; they are not probabilities.
        in_domain: P(the prompt is of the kind that the probe set was fitted on).
        note: a plain word to the reader.
        mismatch: why the probe set does not fit, where it was made to score all the same.
        guarantee: where the probe set has a guaranteed threshold.
        published: whether the stream's server had confirmed the completed event when this was sent.
        feature_schema: hash of names and order of the head statistics behind the signals.
    """

    id: str
    confidence: float | None = None
    hallucination_risk: float | None = None
    strategy: StrategyState | None = None
    calibrated: bool
    probe_set: str | None = None
    spans: tuple[SpanIntrospection, ...] | None = None
    effective_budget: BudgetReport
    scores: dict[str, float] | None = None
    in_domain: float | None = None
    note: str | None = None
    mismatch: str | None = None
    guarantee: GuaranteeReport | None = None
    published: bool | None = None
    feature_schema: str


def strategy_state(strategy: Strategy | None) -> StrategyState | None:
    """`strategy` as it is sent."""
    if strategy is None:
        return None
    probabilities = {label: round(value, 6) for label, value in strategy.probabilities.items()}
    return StrategyState(label=strategy.label, probabilities=probabilities, set=strategy.set)


def token_introspection(signal: TokenSignal, options: IntrospectionOptions = ALL_SIGNALS) -> TokenIntrospection:
    """`signal` as it is sent, only what `options` ask for."""
    risk = signal.hallucination if options.wants("hallucination_risk") else None
    return TokenIntrospection(
        confidence=rounded(signal.confidence) if options.wants("confidence") else None,
        hallucination_risk=rounded(risk.risk) if risk else None,
        internal=rounded(risk.internal) if risk else None,
        prior=rounded(risk.prior) if risk else None,
        kind=risk.kind if risk else None,
        strategy=strategy_state(signal.strategy) if options.wants("strategy") else None,
        final=signal.is_final,
    )


def budget_report(budget: EffectiveBudget) -> BudgetReport:
    """`budget` as it is sent."""
    return BudgetReport(
        policy=budget.policy, nominal=round(budget.nominal, 6), effective=round(budget.effective, 6), prompt_tokens=budget.prompt_tokens
    )


def answer_introspection(
    completion_id: str,
    signal: AnswerSignal,
    budget: EffectiveBudget,
    feature_schema: str,
    *,
    options: IntrospectionOptions = ALL_SIGNALS,
    published: bool | None = None,
) -> AnswerIntrospection:
    """`signal` as it is sent, only what `options` ask for."""
    risky = options.wants("hallucination_risk")
    # No spans from a calibrated set means an answer without claims; from anything else, that claims cannot be told.
    has_spans = risky and signal.spans is not None and (signal.calibrated or bool(signal.spans))
    spans = tuple(_span(span, options) for span in signal.spans or ()) if has_spans else None
    scores = {name: value for name, raw in signal.scores.items() if (value := rounded(raw)) is not None}
    return AnswerIntrospection(
        id=completion_id,
        confidence=rounded(signal.confidence) if options.wants("confidence") else None,
        hallucination_risk=rounded(signal.hallucination_risk) if risky else None,
        strategy=strategy_state(signal.strategy) if options.wants("strategy") else None,
        calibrated=signal.calibrated,
        probe_set=signal.probe_set,
        spans=spans,
        effective_budget=budget_report(budget),
        scores=scores if options.wants("scores") else None,
        in_domain=rounded(signal.in_domain),
        note=signal.note,
        mismatch=signal.mismatch,
        guarantee=None if signal.guarantee is None or not options.wants("confidence") else GuaranteeReport(**vars(signal.guarantee)),
        published=published,
        feature_schema=feature_schema,
    )


def _span(span: SpanSignal, options: IntrospectionOptions) -> SpanIntrospection:
    return SpanIntrospection(
        start=span.start,
        end=span.end,
        text=span.text,
        hallucination_risk=round(span.hallucination_risk, 6),
        strategy=strategy_state(span.strategy) if options.wants("strategy") else None,
    )
