"""The responses of `POST /v1/chat/completions` and `GET /v1/models`, in OpenAI's shape.

Fields that OpenAI sends as null are null; those of `introspection` are left out
where there is nothing to say.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from introspect.types import FinishReason
from introspect_service.signals import AnswerIntrospection, TokenIntrospection


class _MaybeIntrospection(BaseModel):
    """Leaves out `introspection` where it was not asked for."""

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if fields.get("introspection") is None:
            fields.pop("introspection", None)
        return fields


class TopLogprob(BaseModel):
    """One candidate at a position; `logprob` in nats, before temperature."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(_MaybeIntrospection):
    """One token of the answer, and its signals."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]
    introspection: TokenIntrospection | None = None


class Logprobs(BaseModel):
    """The tokens of a choice."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One choice."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class Usage(BaseModel):
    """Token counts; the end token counts as one of the answer's, and the prompt once for all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChoiceIntrospection(AnswerIntrospection):
    """The signals of one choice; its `id` is the one under which the choice is remembered and published."""

    index: int


class CompletionIntrospection(AnswerIntrospection):
    """The signals of choice 0, and where there are several those of all `choices`."""

    choices: tuple[ChoiceIntrospection, ...] | None = None


class ChatCompletion(_MaybeIntrospection):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    introspection: CompletionIntrospection | None = None


class Delta(BaseModel):
    """What a chunk adds; fields are left out, not null, where they add nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """What a chunk adds to one choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(_MaybeIntrospection):
    """One `data:` line of a streamed answer; `introspection` rides on the last chunk with `finish_reason`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    introspection: CompletionIntrospection | None = None


class ModelIntrospection(BaseModel):
    """What this server knows of a model beyond OpenAI's fields."""

    fingerprint: str
    max_context: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    policies: list[str]
    probe_set: str | None


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["introspect"] = "introspect"
    introspection: ModelIntrospection


class ModelList(BaseModel):
    """The served models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
