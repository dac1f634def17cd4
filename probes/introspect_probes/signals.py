"""What probes say: the signals of a token, a span and an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StrategyLabel = Literal["perceiving", "reading", "recalling", "self-conditioned", "guessing"]
STRATEGIES: tuple[StrategyLabel, ...] = ("perceiving", "reading", "recalling", "self-conditioned", "guessing")


@dataclass(frozen=True)
class Strategy:
    """What the model leaned on.

    Attributes:
        label: the most probable state.
        probabilities: calibrated probability of each state.
        set: the states that a conformal set at the stored coverage keeps, most probable first.
    """

    label: StrategyLabel
    probabilities: dict[StrategyLabel, float]
    set: tuple[StrategyLabel, ...]


@dataclass(frozen=True)
class HallucinationRisk:
    """Probability that the claim decided at a token is false, with its two factors.

    Attributes:
        risk: calibrated posterior.
        internal: what attention and logits say, at equal position and repetition.
        prior: what position and repetition alone say.
        kind: `claim` where claims can be told apart, else `token`.
    """

    risk: float
    internal: float
    prior: float
    kind: Literal["claim", "token"]


@dataclass(frozen=True)
class TokenSignal:
    """The signals of one token.

    Attributes:
        index: 0-based index of the token in the answer.
        confidence: P(the answer is correct | what was seen so far).
        hallucination: risk of the claim decided here; absent on tokens that decide nothing.
        strategy: absent where the token decides nothing.
        is_final: False while the reading row, one step later, may still revise it.
    """

    index: int
    confidence: float | None
    hallucination: HallucinationRisk | None
    strategy: Strategy | None
    is_final: bool


@dataclass(frozen=True)
class SpanSignal:
    """One claim of the answer: its text, place and risk."""

    start: int
    end: int
    text: str
    hallucination_risk: float
    strategy: Strategy | None


@dataclass(frozen=True)
class Guaranteed:
    """What is guaranteed of answers like this one.

    Attributes:
        accepted: whether the answer's confidence reaches the threshold.
        threshold: confidence from which answers are accepted.
        target_risk: largest share of wrong answers among the accepted.
        delta: probability that the threshold was chosen wrongly.
    """

    accepted: bool
    threshold: float
    target_risk: float
    delta: float


@dataclass(frozen=True)
class AnswerSignal:
    """The signals of a whole answer; what no fitting probe set can say is absent.

    Attributes:
        confidence: P(the answer is correct).
        hallucination_risk: P(some claim of it is false).
        strategy: of the answer as a whole, averaged over its claims.
        spans: its claims, character offsets into the answer's text; `None` where no probe judges claims.
        calibrated: whether the values come from a probe set fitted for this model and budget.
        probe_set: name of that probe set.
        in_domain: P(the prompt is of the kind the probe set was fitted on).
        note: a plain word to the reader, such as that the question is outside what the model knows.
        scores: named training-free values.
        mismatch: why the probe set does not fit, where it was made to score all the same.
        guarantee: whether the answer is over the threshold of a probe set that has one.
        feature_distance: root mean square of the answer's mean head features that confidence reads, in standard deviations of
            the fit; about 1 for answers like those of the fit.
    """

    confidence: float | None
    hallucination_risk: float | None
    strategy: Strategy | None
    spans: tuple[SpanSignal, ...] | None
    calibrated: bool
    probe_set: str | None
    in_domain: float | None
    note: str | None
    scores: dict[str, float]
    mismatch: str | None = None
    guarantee: Guaranteed | None = None
    feature_distance: float | None = None
