"""What a service and its engine's process tell each other: typed messages in MessagePack, nothing pickled.

Tensors of a prompt, and what is told once an answer, are safetensors; a token's head statistics are the bytes of their
four arrays, whose types and shapes both ends know from the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from msgspec import Struct
from numpy.typing import NDArray

from introspect.errors import RequestError
from introspect.outline import ModelFacts
from introspect.prompt import EncodedPrompt
from introspect.types import (
    Budget,
    EffectiveBudget,
    FinishReason,
    HeadRow,
    LogitStats,
    Message,
    PromptInfo,
    Request,
    SamplingParams,
    StepTrace,
    TextPart,
)
from introspect_kernels import INDICES, NUM_SEGMENTS, REALS

_Fields = tuple[str, str, SamplingParams, Budget, bool, bool]
_PIXELS = "pixels."
_PROMPT_ARRAYS = ("token_ids", "segments", "image_embedding", "logical", "retention")


class Opening(Struct, frozen=True):
    """The first message to the process: what it is to load, see `settings.Settings`."""

    model: str
    device: str
    heads: str | None
    threads: int | None
    max_batch: int
    json_logs: bool


class Ready(Struct, frozen=True, tag=True):
    """The model is loaded, and torch computes with so many threads."""

    facts: ModelFacts
    threads: int


class Refused(Struct, frozen=True, tag=True):
    """The model is not loaded; `kind` is a class of `introspect.errors`."""

    kind: str
    message: str


class Begin(Struct, frozen=True, tag=True):
    """Put this prompt in line; `tensors` are safetensors."""

    number: int
    id: str
    question: str
    sampling: SamplingParams
    budget: Budget
    signals: bool
    influence: bool
    next_position: int
    image_grids: tuple[tuple[int, int], ...]
    tensors: bytes


class Leave(Struct, frozen=True, tag=True):
    """Nobody listens to this answer any more."""

    number: int


class Prefilled(Struct, frozen=True):
    """A `PromptInfo`; `arrays` are safetensors."""

    request_id: str
    question: str
    image_grids: tuple[tuple[int, int], ...]
    budget: EffectiveBudget
    arrays: bytes


class Said(Struct, frozen=True, array_like=True):
    """A `StepTrace` of the answer `number`; an answer's first one tells of its prompt.

    `logits` are the fields of `LogitStats` and `heads` the bytes of those of `HeadRow`, in order.
    """

    number: int
    index: int
    position: int
    token_id: int
    text: str
    is_special: bool
    logits: tuple[float, float, float, tuple[int, ...], tuple[float, ...]] | None
    heads: tuple[bytes, bytes, bytes, bytes] | None
    finish_reason: FinishReason | None = None
    influence: bytes | None = None
    prompt: Prefilled | None = None


class Lost(Struct, frozen=True):
    """An answer ended with an error; `is_request` tells whether it is the request's own, see `RequestError`."""

    number: int
    message: str
    is_request: bool


class Status(Struct, frozen=True):
    """What runs, and the bytes of `KVBytes`."""

    running: int = 0
    decoding: int = 0
    allocated: int = 0
    owned: int = 0
    filled: int = 0


class Told(Struct, frozen=True, tag=True):
    """What one step of the scheduler made; `status` where it has changed."""

    said: list[Said]
    lost: list[Lost]
    status: Status | None = None


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"expected plain values, got {type(value).__name__}, which cannot be sent")


def _rich(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"expected a path, got {kind.__name__}, which cannot be received")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
encode = _encoder.encode
read_opening = msgspec.msgpack.Decoder(Opening).decode
read_command = msgspec.msgpack.Decoder(Begin | Leave).decode
read_answer = msgspec.msgpack.Decoder(Ready | Refused | Told, dec_hook=_rich).decode


def begin(number: int, prompt: EncodedPrompt) -> Begin:
    """A prompt as it is sent.

    Raises:
        RequestError: the request's fields are of other types than they say, or too large to be sent.
    """
    request = prompt.request
    fields = (request.id, request.question, request.sampling, request.budget, request.signals, request.influence)
    try:
        msgspec.msgpack.decode(encode(fields), type=_Fields)
    except (msgspec.ValidationError, TypeError, OverflowError, UnicodeEncodeError) as problem:
        raise RequestError(f"the request cannot be sent to the engine: {problem}") from None
    tensors = {"token_ids": prompt.token_ids, "positions": prompt.positions, "segments": torch.from_numpy(prompt.segments)}
    tensors |= {_PIXELS + name: value for name, value in prompt.pixels.items()}
    return Begin(
        number=number,
        id=request.id,
        question=request.question,
        sampling=request.sampling,
        budget=request.budget,
        signals=request.signals,
        influence=request.influence,
        next_position=prompt.next_position,
        image_grids=prompt.image_grids,
        tensors=safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}),
    )


def prompt_of(sent: Begin) -> EncodedPrompt:
    """The prompt that was sent; of its messages only the question has come."""
    tensors = safetensors.torch.load(sent.tensors)
    message = Message("user", (TextPart(sent.question),))
    return EncodedPrompt(
        request=Request(sent.id, (message,), sent.sampling, sent.budget, sent.signals, sent.influence),
        token_ids=tensors["token_ids"],
        segments=tensors["segments"].numpy(),
        positions=tensors["positions"],
        next_position=sent.next_position,
        pixels={name.removeprefix(_PIXELS): value for name, value in tensors.items() if name.startswith(_PIXELS)},
        image_grids=sent.image_grids,
    )


def said(number: int, step: StepTrace, *, is_first: bool) -> Said:
    """A step as it is sent."""
    logits, heads = step.logits, step.heads
    return Said(
        number,
        step.index,
        step.position,
        step.token_id,
        step.text,
        step.is_special,
        None if logits is None else (logits.logprob, logits.entropy, logits.margin, logits.top_ids, logits.top_logprobs),
        None if heads is None else (heads.reals.tobytes(), heads.indices.tobytes(), heads.mass.tobytes(), heads.retained.tobytes()),
        step.finish_reason,
        None if step.influence is None else safetensors.numpy.save({"influence": np.ascontiguousarray(step.influence)}),
        _prefilled(step.prompt) if is_first else None,
    )


def step_of(sent: Said, prompt: PromptInfo, facts: ModelFacts) -> StepTrace:
    """The step that was sent, of the answer to `prompt` and the model of `facts`."""
    return StepTrace(
        prompt,
        sent.index,
        sent.position,
        sent.token_id,
        sent.text,
        sent.is_special,
        None if sent.logits is None else LogitStats(*sent.logits),
        None if sent.heads is None else _row(sent.heads, facts),
        sent.finish_reason,
        None if sent.influence is None else safetensors.numpy.load(sent.influence)["influence"],
    )


def info_of(sent: Prefilled) -> PromptInfo:
    """The prompt's information that was sent."""
    arrays: dict[str, NDArray[Any] | None] = dict.fromkeys(_PROMPT_ARRAYS)
    arrays |= safetensors.numpy.load(sent.arrays)
    return PromptInfo(
        request_id=sent.request_id, question=sent.question, image_grids=sent.image_grids, budget=sent.budget, **arrays  # type: ignore[arg-type]
    )  # fmt: skip


def _prefilled(info: PromptInfo) -> Prefilled:
    arrays = {name: np.ascontiguousarray(value) for name in _PROMPT_ARRAYS if (value := getattr(info, name)) is not None}
    return Prefilled(info.request_id, info.question, info.image_grids, info.budget, safetensors.numpy.save(arrays))


def _row(sent: tuple[bytes, bytes, bytes, bytes], facts: ModelFacts) -> HeadRow:
    reals, indices, mass, retained = sent
    layers, heads = facts.num_layers, facts.num_heads
    return HeadRow(
        np.frombuffer(reals, np.float32).reshape(len(REALS), layers, heads),
        np.frombuffer(indices, np.int32).reshape(len(INDICES), layers, heads),
        np.frombuffer(mass, np.float32).reshape(layers, heads, NUM_SEGMENTS),
        np.frombuffer(retained, np.int32).reshape(layers, facts.num_kv_heads, NUM_SEGMENTS),
    )
