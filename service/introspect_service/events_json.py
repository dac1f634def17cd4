"""The events of every answer, written without model objects: a token waits for steps, and the next requests for the ends of answers.

The `data` written here reads back as the model in `events` that is named with each, and which is what documents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from introspect.types import PromptInfo
from introspect_service import clock
from introspect_service.events import EventData
from introspect_service.generation import Ended, Token
from introspect_service.signals_json import budget_json, encode, number, token_signal_json, words


@dataclass(frozen=True)
class WrittenEvent:
    """An event whose data is JSON already.

    Attributes:
        completion_id: the answer's id.
        sequence: number of the event among the answer's.
        source: who publishes it.
        model: what the data reads back as.
        data: its JSON.
    """

    completion_id: str
    sequence: int
    source: str
    model: type[EventData]
    data: str

    @property
    def droppable(self) -> bool:
        """Whether it may be dropped where the stream cannot keep up."""
        return self.model.DROPPABLE

    def to_fields(self) -> dict[str, str]:
        """The fields of the stream entry: those of `events.SignalEvent`."""
        return {
            "specversion": "1.0",
            "id": f"{self.completion_id}/{self.sequence}",
            "source": self.source,
            "type": self.model.TYPE,
            "subject": self.completion_id,
            "time": clock.timestamp(),
            "datacontenttype": "application/json",
            "sequence": str(self.sequence),
            "data": self.data,
        }


def started_json(model: str, prompt: PromptInfo, feature_schema: str, probe_set: str | None) -> str:
    """The JSON of an `events.StartedData`."""
    return (
        f'{{"model":{encode(model)},"prompt_tokens":{len(prompt.token_ids)},"effective_budget":{budget_json(prompt.budget)},'
        f'{words("probe_set", probe_set)}"feature_schema":{encode(feature_schema)}}}'
    )


def token_json(token: Token) -> str:
    """The JSON of an `events.StreamedToken`."""
    step, logits = token.step, token.step.logits
    measured = number("logprob", logits.logprob) + number("entropy", logits.entropy) if logits is not None else ""
    return f'{{"index":{step.index},"text":{encode(step.text)},{measured}"introspection":{token_signal_json(token.signal)}}}'


def step_json(model: str, tokens: Sequence[Token]) -> str:
    """The JSON of an `events.StepData`."""
    return f'{{"model":{encode(model)},"tokens":[{",".join([token_json(token) for token in tokens])}]}}'


def completed_json(model: str, ended: Ended, introspection: str) -> str:
    """The JSON of an `events.CompletedData`, of that of its signals."""
    return (
        f'{{"model":{encode(model)},"text":{encode(ended.text)},"finish_reason":"{ended.finish_reason}",'
        f'"prompt_tokens":{len(ended.prompt.token_ids)},"completion_tokens":{ended.tokens},"seconds":{ended.seconds:.6f},'
        f'"introspection":{introspection}}}'
    )
