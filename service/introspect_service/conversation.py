"""From a chat request to a request of the engine, within the server's limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from introspect.types import Budget, ImagePart, Message, Request, Role, SamplingParams, TextPart
from introspect_service.budgets import override_budget
from introspect_service.errors import ApiError, ImageError
from introspect_service.images import decode_data_uri, decode_image
from introspect_service.schemas import ChatMessage, ChatRequest, ImageContent, TextContent
from introspect_service.settings import Settings

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def remote_pictures(chat: ChatRequest) -> Iterator[tuple[str, str]]:
    """Every picture that is no `data:` URI: its place in the request, and its address."""
    for place, message in enumerate(chat.messages):
        for number, part in enumerate(message.content):
            if isinstance(part, ImageContent) and part.image_url.url[:5].lower() != "data:":
                yield _param(place, number), part.image_url.url


def to_engine_request(chat: ChatRequest, request_id: str, settings: Settings, fetched: Mapping[str, bytes] | None = None) -> Request:
    """Decode the pictures of `chat`, which `check_counts` let pass, and write it in the engine's terms.

    Decodes pictures: run it beside the event loop, not on it.

    Args:
        chat: what was asked.
        request_id: the answer's id.
        settings: the limits.
        fetched: encoded pictures by their addresses; no other address is taken.

    Raises:
        ApiError: 400, naming the field that is over a limit or cannot be read.
    """
    return Request(request_id, _messages(chat.messages, settings, fetched or {}), _sampling(chat, settings), _budget(chat, settings))


def check_counts(chat: ChatRequest, settings: Settings) -> None:
    """Refuse a request that asks for too much, before anything is done for it.

    Raises:
        ApiError: 400, naming the field.
    """

    def refuse(what: str, limit: int) -> ApiError:
        return ApiError(400, f"The request has too many {what}: at most {limit} are taken.", param="messages", code="limit_exceeded")

    if chat.choices > settings.most_choices:
        message = f"n: expected at most {settings.most_choices}, got {chat.choices}."
        raise ApiError(400, message, param="n", code="limit_exceeded")
    if len(chat.messages) > settings.max_messages:
        raise refuse("messages", settings.max_messages)
    parts = [part for message in chat.messages for part in message.content]
    if sum(isinstance(part, ImageContent) for part in parts) > settings.max_images:
        raise refuse("pictures", settings.max_images)
    if sum(len(part.text) for part in parts if isinstance(part, TextContent)) > settings.max_prompt_chars:
        raise refuse("characters", settings.max_prompt_chars)


def _messages(messages: list[ChatMessage], settings: Settings, fetched: Mapping[str, bytes]) -> tuple[Message, ...]:
    pixels_left = settings.max_pixels
    done = []
    for place, message in enumerate(messages):
        parts: list[ImagePart | TextPart] = []
        for number, part in enumerate(message.content):
            if isinstance(part, TextContent):
                parts.append(TextPart(part.text, is_context=part.segment == "context"))
                continue
            try:
                url = part.image_url.url
                if (data := fetched.get(url)) is not None:
                    image = decode_image(data, max_pixels=pixels_left)
                else:
                    image = decode_data_uri(url, max_bytes=settings.max_image_bytes, max_pixels=pixels_left)
            except ImageError as error:
                raise refused_picture(error, _param(place, number)) from None
            pixels_left -= image.width * image.height
            parts.append(ImagePart(image))
        done.append(Message(_ROLES[message.role], tuple(parts)))
    return tuple(done)


def refused_picture(error: ImageError, param: str) -> ApiError:
    """What the client is told of a picture that is not taken."""
    return ApiError(400, str(error), param=param, code="invalid_image")


def _param(place: int, number: int) -> str:
    return f"messages.{place}.content.{number}.image_url.url"


def _sampling(chat: ChatRequest, settings: Settings) -> SamplingParams:
    longest = chat.max_completion_tokens or chat.max_tokens or settings.default_max_tokens
    if longest > settings.max_tokens:
        name = "max_completion_tokens" if chat.max_completion_tokens else "max_tokens"
        raise ApiError(400, f"{name}: expected at most {settings.max_tokens}, got {longest}.", param=name, code="limit_exceeded")
    return SamplingParams(
        max_tokens=longest,
        temperature=chat.temperature or 0.0,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        seed=chat.seed,
        stop=tuple(chat.stop or ()),
    )


def _budget(chat: ChatRequest, settings: Settings) -> Budget:
    options = chat.introspection
    if options is None:
        return settings.budget
    try:
        return override_budget(settings.kv_budget, settings.policy, options.kv_budget, options.policy)
    except ValueError as error:
        raise ApiError(400, f"introspection: {error}", param="introspection", code="invalid_value") from None
