"""Step events as they go out, written without a model object for every token: the one event that is made while tokens wait.

What is written reads back as `events.StepData`, which is what documents it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from introspect_probes.signals import Strategy, TokenSignal
from introspect_service import clock
from introspect_service.events import StepData
from introspect_service.generation import Token
from introspect_service.signals import rounded

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def token_json(token: Token) -> str:
    """The JSON of an `events.StreamedToken`."""
    logits = token.step.logits
    said: dict[str, Any] = {"index": token.step.index, "text": token.step.text}
    if logits is not None:
        _put(said, "logprob", logits.logprob)
        _put(said, "entropy", logits.entropy)
    said["introspection"] = _signals(token.signal)
    return _encode(said)


def _signals(signal: TokenSignal) -> dict[str, Any]:
    said: dict[str, Any] = {}
    _put(said, "confidence", signal.confidence)
    if (risk := signal.hallucination) is not None:
        _put(said, "hallucination_risk", risk.risk)
        _put(said, "internal", risk.internal)
        _put(said, "prior", risk.prior)
        said["kind"] = risk.kind
    if signal.strategy is not None:
        said["strategy"] = _strategy(signal.strategy)
    said["final"] = signal.is_final
    return said


def _strategy(strategy: Strategy) -> dict[str, Any]:
    probabilities = {label: round(value, 6) for label, value in strategy.probabilities.items()}
    return {"label": strategy.label, "probabilities": probabilities, "set": strategy.set}


def _put(said: dict[str, Any], name: str, value: float | None) -> None:
    """Leave out what is not known, and what JSON cannot carry."""
    if (known := rounded(value)) is not None:
        said[name] = known


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
