"""From a request to model inputs, with the origin of every prompt token."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.errors import RequestError
from introspect.grids import image_grids
from introspect.loading import LoadedModel
from introspect.types import ImagePart, Message, Request, TextPart
from introspect_kernels import Segment

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    Attributes:
        request: what was asked.
        token_ids: `int64 [prompt]`, image placeholders expanded.
        segments: `uint8 [prompt]`.
        positions: `int64 [1 or 3, prompt]`, rotary positions (three axes for M-RoPE).
        next_position: rotary position of the first generated token, equal on all axes.
        pixels: the vision inputs, by the names the model takes them under.
        image_grids: rows and columns of each picture's tokens, where they form one grid.
    """

    request: Request
    token_ids: torch.Tensor
    segments: NDArray[np.uint8]
    positions: torch.Tensor
    next_position: int
    pixels: dict[str, torch.Tensor]
    image_grids: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """Prompt tokens."""
        return int(self.token_ids.shape[0])


def encode(loaded: LoadedModel, request: Request) -> EncodedPrompt:
    """Render, tokenize and map one request.

    Raises:
        RequestError: no question, a picture the model cannot take, or a prompt and answer longer than the context.
    """
    _refuse_control_tokens(loaded, request.messages)
    images = [part.image for message in request.messages for part in message.parts if isinstance(part, ImagePart)]
    rendered = render(loaded, request.messages)
    bos = getattr(loaded.tokenizer, "bos_token", None)
    options: dict[str, Any] = {"add_special_tokens": not (bos and rendered.startswith(bos)), "return_tensors": "pt"}
    try:
        inputs = dict(loaded.processor(text=[rendered], images=images or None, **options))
    except (ValueError, TypeError) as problem:
        raise RequestError("the model's processor cannot take this prompt: check the number and the size of its images") from problem
    token_ids = inputs["input_ids"][0]
    plain = loaded.tokenizer(rendered, return_offsets_mapping=True, add_special_tokens=options["add_special_tokens"])
    origins = character_segments(rendered, request.messages)
    segments = token_segments(loaded, token_ids.tolist(), plain.input_ids, plain.offset_mapping, origins)
    return encoded_from_inputs(loaded, request, inputs, segments)


def _refuse_control_tokens(loaded: LoadedModel, messages: tuple[Message, ...]) -> None:
    """A control token in a caller's text would become one: a forged turn, a picture that is not there.

    Raises:
        RequestError: a text holds one.
    """
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, TextPart):
            found = next((token for token in loaded.tokenizer.all_special_tokens if token in part.text), None)
            if found is not None:
                raise RequestError(f"the text holds {found!r}, a control token of the model; take it out or spell it otherwise")


def encoded_from_inputs(
    loaded: LoadedModel, request: Request, inputs: dict[str, torch.Tensor], segments: NDArray[np.uint8]
) -> EncodedPrompt:
    """An encoded prompt from a processor's output for one request and the origin of each token.

    Raises:
        RequestError: prompt and answer are longer than the context, or the request contradicts itself.
    """
    token_ids = inputs["input_ids"][0]
    length = int(token_ids.shape[0])
    if length < 2:
        raise RequestError(f"a prompt needs at least two tokens, got {length}")
    if request.influence and not request.signals:
        raise RequestError("influence is told beside the head statistics: ask with signals, or without influence")
    if length + request.sampling.max_tokens > loaded.max_context:
        raise RequestError(
            f"prompt of {length} tokens and answer of up to {request.sampling.max_tokens} exceed the context of {loaded.max_context}; "
            "shorten the prompt or lower max_tokens"
        )
    positions, following = rotary_positions(loaded, inputs)
    taken = inspect.signature(loaded.model.model.forward).parameters
    pixels = {name: value for name, value in inputs.items() if name in taken and name not in _PER_TOKEN}
    return EncodedPrompt(request, token_ids, segments, positions, following, pixels, image_grids(loaded, token_ids, pixels))


def render(loaded: LoadedModel, messages: tuple[Message, ...]) -> str:
    """The conversation as the model's chat template writes it.

    Raises:
        RequestError: the last message is not a user's with some text.
    """
    if not messages or messages[-1].role != "user" or not any(isinstance(p, TextPart) and p.text.strip() for p in messages[-1].parts):
        raise RequestError("the last message must be the user's and hold some text")
    chat = [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text} for part in message.parts
            ],
        }
        for message in messages
    ]
    template = loaded.processor if getattr(loaded.processor, "chat_template", None) else loaded.tokenizer
    rendered: str = template.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return rendered


def character_segments(rendered: str, messages: tuple[Message, ...]) -> NDArray[np.uint8]:
    """The origin of every character of the rendered prompt: template, context or question.

    Passages are found from the end backwards, because the template may trim them but keeps their order.
    """
    origins = np.full(len(rendered), int(Segment.TEMPLATE), dtype=np.uint8)
    end = len(rendered)
    for number, message in reversed(list(enumerate(messages))):
        for part in reversed(message.parts):
            if not isinstance(part, TextPart) or not part.text.strip():
                continue
            start = rendered.rfind(part.text.strip(), 0, end)
            if start < 0:
                raise RequestError("the chat template changes a passage's text, so it cannot be traced to its tokens")
            stop = start + len(part.text.strip())
            if part.is_context:
                origins[start:stop] = Segment.CONTEXT
            elif number == len(messages) - 1 and message.role == "user":
                origins[start:stop] = Segment.QUESTION
            end = start
    return origins


def token_segments(
    loaded: LoadedModel,
    expanded: list[int],
    plain: list[int],
    offsets: list[tuple[int, int]],
    origins: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """The segment of every prompt token.

    `plain` are the rendered prompt's tokens with one placeholder a picture and
    `expanded` those the model gets. Only the tokens that image features go to
    are of the image segment; what a processor writes around them (row ends,
    tile names, start and end of a picture) is template.

    Raises:
        RequestError: the two do not match, so that origins cannot be told.
    """
    segments = np.full(len(expanded), int(Segment.TEMPLATE), dtype=np.uint8)
    ids = np.array(expanded)
    image = ids == loaded.image_token_id
    places = [i for i, token in enumerate(plain) if token == placeholder_of(loaded, plain)]
    cursor = 0
    for begin, end in pairwise([-1, *places, len(plain)]):
        piece, own = plain[begin + 1 : end], offsets[begin + 1 : end]
        if begin >= 0:
            cursor = _after_first_image_token(image, cursor)
        at, dropped, length = _find(ids, piece, cursor, is_first=begin < 0, is_last=end == len(plain))
        for number, (start, stop) in enumerate(own[dropped : dropped + length], at):
            if stop > start:
                segments[number] = origins[stop - 1]
        if dropped and at > cursor:  # what stands there ends where the dropped token ends
            segments[at - 1] = origins[own[0][1] - 1]
        cursor = at + length
    segments[image] = Segment.IMAGE
    segments[0] = Segment.SINK
    return segments


def placeholder_of(loaded: LoadedModel, plain: list[int]) -> int:
    """The token that stands for a whole picture before the processor expands it; Gemma 3 writes its start token there."""
    other = getattr(loaded.model.config, "boi_token_index", None)
    return loaded.image_token_id if other is None or loaded.image_token_id in plain else int(other)


def _after_first_image_token(image: NDArray[np.bool_], cursor: int) -> int:
    found = np.flatnonzero(image[cursor:])
    if not len(found):
        raise RequestError("the processor writes fewer pictures than the prompt has, so its tokens cannot be traced")
    return cursor + int(found[0]) + 1


def _find(ids: NDArray[np.int64], piece: list[int], cursor: int, *, is_first: bool, is_last: bool) -> tuple[int, int, int]:
    """Where a piece of text between pictures stands in `ids`, from `cursor` on.

    Where the processor writes text around a picture, the token at a piece's edge
    may have merged with it; so a piece may miss one token at either end that is a picture's.

    Returns:
        Start, how many of the piece's first tokens are not there, and how many tokens are.
    """
    for late, early in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if late + early and (late + early >= len(piece) or (late and is_last) or (early and is_first)):
            continue
        core = np.array(piece[early : len(piece) - late], dtype=np.int64)
        last = len(ids) - len(core)
        starts = [0] if is_first else [last] if is_last else range(cursor, last + 1)
        for start in starts:
            if cursor <= start <= last and (ids[start : start + len(core)] == core).all() and not (is_first and is_last and last):
                return start, early, len(core)
    raise RequestError("the processor rewrites the prompt's text, so its tokens cannot be traced")


def rotary_positions(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Rotary positions `[axes, prompt]` and the position of the first generated token."""
    base = loaded.model.model
    token_ids = inputs["input_ids"]
    if not hasattr(base, "get_rope_index"):
        return torch.arange(token_ids.shape[1])[None], int(token_ids.shape[1])
    kinds = inputs.get("mm_token_type_ids")
    if kinds is None:
        kinds = (token_ids == loaded.image_token_id).int()
    positions, deltas = base.get_rope_index(token_ids, mm_token_type_ids=kinds, image_grid_thw=inputs.get("image_grid_thw"))
    return positions[:, 0], int(token_ids.shape[1] + deltas.flatten()[0])
