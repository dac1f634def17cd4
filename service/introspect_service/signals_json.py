"""Signals as they go out where time is short, written without a model object for every token and every span.

What is written reads back as the models of `signals`, which are what documents it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from math import isfinite

from introspect.types import EffectiveBudget
from introspect_probes.signals import AnswerSignal, SpanSignal, Strategy, TokenSignal
from introspect_service.schemas import IntrospectionOptions
from introspect_service.signals import ALL_SIGNALS

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""JSON in ASCII: some clients split lines at U+2028 and its like, which JSON may carry as they are."""


def number(name: str, value: float | None) -> str:
    """A member of an object and its comma; nothing of what is not known, and of what JSON cannot carry."""
    return f'"{name}":{value:.6f},' if value is not None and isfinite(value) else ""


def words(name: str, value: str | None) -> str:
    """The same of a text."""
    return f'"{name}":{encode(value)},' if value is not None else ""


def flag(value: bool) -> str:
    """A truth value."""
    return "true" if value else "false"


def strategy_json(strategy: Strategy) -> str:
    """The JSON of a `signals.StrategyState`; labels are plain words."""
    probabilities = ",".join([f'"{label}":{value:.6f}' for label, value in strategy.probabilities.items() if isfinite(value)])
    kept = ",".join([f'"{label}"' for label in strategy.set])
    return f'{{"label":"{strategy.label}","probabilities":{{{probabilities}}},"set":[{kept}]}}'


def token_signal_json(signal: TokenSignal) -> str:
    """The JSON of a `signals.TokenIntrospection`."""
    said = number("confidence", signal.confidence)
    if (risk := signal.hallucination) is not None:
        said += number("hallucination_risk", risk.risk) + number("internal", risk.internal) + number("prior", risk.prior)
        said += f'"kind":"{risk.kind}",'
    return f'{{{said}{_strategy(signal.strategy)}"final":{flag(signal.is_final)}}}'


def budget_json(budget: EffectiveBudget) -> str:
    """The JSON of a `signals.BudgetReport`."""
    kept = number("nominal", budget.nominal) + number("effective", budget.effective)
    return f'{{"policy":{encode(budget.policy)},{kept}"prompt_tokens":{budget.prompt_tokens}}}'


class AnswerJson:
    """Writes the signals of one answer for the stream and for its response; what both are told is written once.

    Args:
        signal: the signals.
        budget: the KV budget that it was made under.
    """

    def __init__(self, signal: AnswerSignal, budget: EffectiveBudget) -> None:
        self._signal, self._budget = signal, budget

    def of(
        self, completion_id: str, feature_schema: str, *, options: IntrospectionOptions = ALL_SIGNALS, published: bool | None = None
    ) -> str:
        """The JSON of what `signals.answer_introspection` makes of the same."""
        said = self._everything if options.signals is None else _answer(self._signal, options)
        told = "" if published is None else f'"published":{flag(published)},'
        return (
            f'{{"id":{encode(completion_id)},{said}"effective_budget":{budget_json(self._budget)},{told}'
            f'"feature_schema":{encode(feature_schema)}}}'
        )

    @cached_property
    def _everything(self) -> str:
        return _answer(self._signal, ALL_SIGNALS)


def _answer(signal: AnswerSignal, options: IntrospectionOptions) -> str:
    sure, risky, leaning = options.wants("confidence"), options.wants("hallucination_risk"), options.wants("strategy")
    said = number("confidence", signal.confidence) if sure else ""
    said += number("hallucination_risk", signal.hallucination_risk) if risky else ""
    said += _strategy(signal.strategy) if leaning else ""
    said += f'"calibrated":{flag(signal.calibrated)},' + words("probe_set", signal.probe_set)
    # No spans from a calibrated set means an answer without claims; from anything else, that claims cannot be told.
    if risky and signal.spans is not None and (signal.calibrated or signal.spans):
        said += _spans(signal.spans, leaning=leaning)
    if options.wants("scores"):
        scores = "".join([number(name, value) for name, value in signal.scores.items()])[:-1]
        said += f'"scores":{{{scores}}},'
    said += number("in_domain", signal.in_domain) + words("note", signal.note) + words("mismatch", signal.mismatch)
    return said + (f'"guarantee":{encode(vars(signal.guarantee))},' if sure and signal.guarantee is not None else "")


def _spans(spans: Sequence[SpanSignal], *, leaning: bool) -> str:
    return f'"spans":[{",".join([_span(span, leaning=leaning) for span in spans])}],'


def _span(span: SpanSignal, *, leaning: bool) -> str:
    said = number("hallucination_risk", span.hallucination_risk) + (_strategy(span.strategy) if leaning else "")
    return f'{{{said}"start":{span.start},"end":{span.end},"text":{encode(span.text)}}}'


def _strategy(strategy: Strategy | None) -> str:
    return f'"strategy":{strategy_json(strategy)},' if strategy is not None else ""
