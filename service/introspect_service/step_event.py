"""Step events as they go out, written without a model object for every token: the one event that is made while tokens wait.

What is written reads back as `events.StepData`, which is what documents it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from introspect_probes.signals import Strategy, TokenSignal
from introspect_service import clock
from introspect_service.events import StepData
from introspect_service.generation import Token

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def token_json(token: Token) -> str:
    """The JSON of an `events.StreamedToken`."""
    step, logits = token.step, token.step.logits
    measured = _number("logprob", logits.logprob) + _number("entropy", logits.entropy) if logits is not None else ""
    return f'{{"index":{step.index},"text":{_encode(step.text)},{measured}"introspection":{_signals(token.signal)}}}'


def _signals(signal: TokenSignal) -> str:
    said = _number("confidence", signal.confidence)
    if (risk := signal.hallucination) is not None:
        said += _number("hallucination_risk", risk.risk) + _number("internal", risk.internal) + _number("prior", risk.prior)
        said += f'"kind":"{risk.kind}",'
    if signal.strategy is not None:
        said += f'"strategy":{_strategy(signal.strategy)},'
    return f'{{{said}"final":{"true" if signal.is_final else "false"}}}'


def _strategy(strategy: Strategy) -> str:
    """The JSON of a `signals.StrategyState`; labels are plain words."""
    probabilities = "".join([_number(label, value) for label, value in strategy.probabilities.items()])[:-1]
    kept = ",".join([f'"{label}"' for label in strategy.set])
    return f'{{"label":"{strategy.label}","probabilities":{{{probabilities}}},"set":[{kept}]}}'


def _number(name: str, value: float | None) -> str:
    """A member of an object and its comma; nothing of what is not known, and of what JSON cannot carry."""
    return f'"{name}":{value:.6f},' if value is not None and isfinite(value) else ""


@dataclass(frozen=True)
class StepEvent:
    """Some tokens of an answer as one event.

    Attributes:
        completion_id: the answer's id.
        sequence: number of the event among the answer's.
        source: who publishes it.
        model: the model's name.
        tokens: `token_json` of each.
    """

    droppable: ClassVar[bool] = StepData.DROPPABLE

    completion_id: str
    sequence: int
    source: str
    model: str
    tokens: tuple[str, ...]

    def to_fields(self) -> dict[str, str]:
        """The fields of the stream entry: those of `events.SignalEvent`."""
        return {
            "specversion": "1.0",
            "id": f"{self.completion_id}/{self.sequence}",
            "source": self.source,
            "type": StepData.TYPE,
            "subject": self.completion_id,
            "time": clock.timestamp(),
            "datacontenttype": "application/json",
            "sequence": str(self.sequence),
            "data": f'{{"model":{_encode(self.model)},"tokens":[{",".join(self.tokens)}]}}',
        }
