"""The request of `POST /v1/chat/completions`: OpenAI's fields, and `introspection`.

Fields that this server does not know are ignored, as OpenAI's clients expect;
fields that it knows and cannot honour are refused, never passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from introspect_service.budgets import parse_kv_budget

SignalName = Literal["confidence", "hallucination_risk", "strategy", "scores"]


def _is_unicode(value: str) -> str:
    # JSON can carry half a surrogate pair; no tokenizer and no JSON response can.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected valid Unicode, without lone surrogates") from None
    return value


def _unsupported_unless(*neutral: object) -> AfterValidator:
    def check(value: object) -> object:
        if value is not None and value not in neutral:
            raise ValueError("this parameter is not supported by this server; leave it out")
        return value

    return AfterValidator(check)


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_options(value: object) -> object:
    if value is True:
        return {}
    return None if value is False else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_budget(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        parse_kv_budget(value)
    return value


Text = Annotated[str, AfterValidator(_is_unicode)]
Stop = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_is_unicode)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class TextContent(_Strict):
    """A text part; `"segment": "context"` marks a passage to be read, not a question."""

    type: Literal["text"]
    text: Text
    segment: Literal["context"] | None = None


class ImageUrl(_Strict):
    """A picture as a `data:` URI (png, jpeg or webp), or its address where the server allows its host; `detail` has no effect."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImageContent(_Strict):
    """A picture part."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class ChatMessage(_Strict):
    """One message; a string of content is one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart]), Field(min_length=1)]


class IntrospectionOptions(_Strict):
    """What to tell beside the answer, and under which KV budget to make it.

    Attributes:
        signals: which signals to return; all where absent.
        kv_budget: entries per KV head (`64`) or a share of the prompt (`"25%"`); the server's where absent.
        policy: who chooses the entries to keep; the server's where absent.
    """

    model_config = ConfigDict(extra="forbid")

    signals: list[SignalName] | None = None
    kv_budget: Annotated[str | None, BeforeValidator(_as_budget, json_schema_input_type=str | int | None)] = None
    policy: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    def wants(self, signal: SignalName) -> bool:
        """Whether `signal` is to be returned."""
        return self.signals is None or signal in self.signals


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """A chat completion request.

    `temperature` is 0 where absent, unlike OpenAI's 1: the signals speak of the
    answer the model itself finds most probable.
    """

    model: Annotated[Text, Field(max_length=512)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    introspection: Annotated[
        IntrospectionOptions | None, BeforeValidator(_as_options, json_schema_input_type=bool | IntrospectionOptions | None)
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[
        Annotated[list[Stop], Field(max_length=4)] | None, BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None)
    ] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    frequency_penalty: Annotated[Any, _unsupported_unless(0)] = None
    presence_penalty: Annotated[Any, _unsupported_unless(0)] = None
    logit_bias: Annotated[Any, _unsupported_unless({})] = None
    tools: Annotated[Any, _unsupported_unless([])] = None
    tool_choice: Annotated[Any, _unsupported_unless("none", "auto")] = None
    functions: Annotated[Any, _unsupported_unless([])] = None
    function_call: Annotated[Any, _unsupported_unless("none", "auto")] = None
    response_format: Annotated[Any, _unsupported_unless({"type": "text"})] = None
    modalities: Annotated[Any, _unsupported_unless(["text"])] = None
    audio: Annotated[Any, _unsupported_unless()] = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("candidates are listed only with logprobs: true")
        return value
