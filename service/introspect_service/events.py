"""The events of the stream: flat CloudEvents 1.0 fields and a JSON `data`.

One Redis stream entry is one event; its fields are the CloudEvents attributes
by their own names (there is no official Redis binding; this is the binary mode
of the Kafka and NATS ones) and `data`, a JSON object of the model below that
`type` names. A delivery may be repeated after a broken connection: `source` and
`id` together tell a repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from introspect.types import FinishReason
from introspect_service import clock
from introspect_service.signals import AnswerIntrospection, BudgetReport, Sparse, TokenIntrospection

STREAM_KEY = "introspect:v1:signals"

DEAD_KEY = "introspect:v1:dead"
"""The stream of entries that some group's consumers could not handle, with what became of them."""


class EventData(Sparse):
    """The `data` of an event.

    Attributes:
        TYPE: the CloudEvents `type` that goes with it.
        DROPPABLE: whether it may be dropped where the stream cannot keep up.
    """

    TYPE: ClassVar[str]
    DROPPABLE: ClassVar[bool] = False

    model: str


class StartedData(EventData):
    """The prompt is read and its cache is cut to the budget; the first token comes next. `probe_set` is who will score it, if one does."""

    TYPE: ClassVar[str] = "introspect.started.v1"

    prompt_tokens: int
    effective_budget: BudgetReport
    feature_schema: str
    probe_set: str | None = None


class StreamedToken(Sparse):
    """One token: `logprob` (before temperature) and `entropy` (of the whole distribution) in nats."""

    index: int
    text: str
    logprob: float | None = None
    entropy: float | None = None
    introspection: TokenIntrospection


class StepData(EventData):
    """Up to 16 tokens, or those of 100 ms, in order."""

    TYPE: ClassVar[str] = "introspect.step.v1"
    DROPPABLE: ClassVar[bool] = True

    tokens: tuple[StreamedToken, ...]


class AlertData(EventData):
    """A risk is over the threshold that the operator set.

    Attributes:
        level: `token`: a token whose final risk is over it, told of in a step before this one; `answer`: the finished answer.
        hallucination_risk: the risk.
        threshold: what it is over.
        start: where the text in question begins, in characters of the answer's text.
        end: where it ends.
        text: the text itself.
        index: the token's index; on tokens only.
        kind: whether the token decides a claim, or claims cannot be told; on tokens only.
        probe_set: who says so; absent where no probe set does.
    """

    TYPE: ClassVar[str] = "introspect.alert.v1"

    level: Literal["token", "answer"]
    hallucination_risk: float
    threshold: float
    start: int
    end: int
    text: str
    index: int | None = None
    kind: Literal["claim", "token"] | None = None
    probe_set: str | None = None


class CompletedData(EventData):
    """The answer is complete; `seconds` from the start of its prefill to its last token."""

    TYPE: ClassVar[str] = "introspect.completed.v1"

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    introspection: AnswerIntrospection


class FailedData(EventData):
    """The answer was not completed.

    `reason`: the request could not be served (`invalid_request`), its client left (`cancelled`), or the server
    failed (`internal_error`).
    """

    TYPE: ClassVar[str] = "introspect.failed.v1"

    reason: Literal["invalid_request", "cancelled", "internal_error"]
    message: str


class SpanLabel(BaseModel):
    """Whether one claim is right; `start` and `end` are character offsets into the answer's text."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    label: Literal["right", "wrong"]


class FeedbackData(EventData):
    """Somebody said whether the answer is right; a later one about the same answer stands over an earlier one."""

    TYPE: ClassVar[str] = "introspect.feedback.v1"

    label: Literal["right", "wrong"]
    spans: tuple[SpanLabel, ...] = ()


EVENT_DATA = (StartedData, StepData, AlertData, CompletedData, FailedData, FeedbackData)

DATA_MODELS: dict[str, type[EventData]] = {model.TYPE: model for model in EVENT_DATA}


class SignalEvent(BaseModel):
    """One event.

    Attributes:
        id: `<completion id>/<sequence>`.
        source: the server that published it, `/introspect/<replica>`.
        type: `introspect.{started,step,alert,completed,failed,feedback}.v1`.
        subject: the completion id.
        time: RFC 3339, UTC.
        sequence: counts the events of one completion from 0; a gap means that steps were dropped.
        data: as `type` says.
    """

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: Literal["application/json"] = "application/json"
    sequence: int
    data: EventData

    @property
    def droppable(self) -> bool:
        """Whether it may be dropped where the stream cannot keep up."""
        return self.data.DROPPABLE

    @staticmethod
    def make(completion_id: str, sequence: int, source: str, data: EventData) -> SignalEvent:
        """An event that happens now."""
        return SignalEvent(
            id=f"{completion_id}/{sequence}",
            source=source,
            type=data.TYPE,
            subject=completion_id,
            time=clock.timestamp(),
            sequence=sequence,
            data=data,
        )

    def to_fields(self) -> dict[str, str]:
        """The fields of the stream entry."""
        fields = {name: str(value) for name, value in self if name != "data"}
        return fields | {"data": self.data.model_dump_json()}

    @staticmethod
    def from_fields(fields: Mapping[str, str]) -> SignalEvent:
        """Read a stream entry; fields that are not known are ignored.

        Raises:
            ValueError: it is no event of this version of the stream.
        """
        kind = fields.get("type", "")
        if kind not in DATA_MODELS:
            raise ValueError(f"expected an event of type {', '.join(DATA_MODELS)}, got {kind!r}")
        data = DATA_MODELS[kind].model_validate_json(fields.get("data", ""))
        return SignalEvent.model_validate({**fields, "data": data})
