"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from introspect.head_row import HeadRow as HeadRow  # with the types that a step is made of

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ImagePart:
    """A picture in a message."""

    image: Image.Image


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a message; `is_context` marks a passage to be read, not a question."""

    text: str
    is_context: bool = False


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    parts: tuple[ImagePart | TextPart, ...]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    `temperature` 0 is greedy. `top_p` keeps the smallest set of tokens whose
    probability reaches it. `stop` strings end the answer and are not part of it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How much of the prompt's cache is kept.

    `entries` is the mean number of KV entries per KV head, window included;
    `ratio` the same as a share of the prompt's length. At most one is given;
    neither means the whole cache. `policy` names who chooses the entries.
    """

    policy: str = "full"
    entries: int | None = None
    ratio: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One generation to run.

    Without `signals` no head statistics are computed: its steps' `heads` are `None`. With `influence` the answer's
    closing step tells what its tokens received from later ones, see `StepTrace`; it takes the statistics too.
    """

    id: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    budget: Budget = field(default_factory=Budget)
    signals: bool = True
    influence: bool = False

    @property
    def question(self) -> str:
        """The text of the last message that is not a marked passage."""
        parts = self.messages[-1].parts if self.messages else ()
        return " ".join(part.text.strip() for part in parts if isinstance(part, TextPart) and not part.is_context)

    @staticmethod
    def ask(
        request_id: str,
        question: str,
        image: Image.Image | None = None,
        *,
        context: tuple[str, ...] = (),
        sampling: SamplingParams | None = None,
        budget: Budget | None = None,
    ) -> Request:
        """One question about one picture."""
        pictures = (ImagePart(image),) if image is not None else ()
        parts = (*pictures, *(TextPart(c, is_context=True) for c in context), TextPart(question))
        return Request(request_id, (Message("user", parts),), sampling or SamplingParams(), budget or Budget())


@dataclass(frozen=True)
class EffectiveBudget:
    """What was asked for and what was kept, in mean KV entries per KV head of the prompt."""

    policy: str
    nominal: float
    effective: float
    prompt_tokens: int


@dataclass(frozen=True)
class PromptInfo:
    """What is known of a request once its prompt is prefilled.

    Attributes:
        question: the last user text, as it was asked.
        token_ids: `int64 [prompt]`, image placeholders expanded.
        segments: `uint8 [prompt]`, see `introspect_kernels.Segment`.
        image_embedding: `float32 [hidden]`, mean of the image tokens that reach the language model;
            `None` without a picture.
        image_grids: rows and columns of each picture's image tokens, where they form one grid.
        budget: nominal and effective budget.
        logical: `int32 [6]`, prompt entries per segment before eviction.
        retention: `float32 [layers, kv_heads, 6]`, share of the prefill window's attention mass per
            segment that survived, position 0 aside; NaN where the segment had none, and at layers with
            a sliding window, which no budget touches.
    """

    request_id: str
    question: str
    token_ids: NDArray[np.int64]
    segments: NDArray[np.uint8]
    image_embedding: NDArray[np.float32] | None
    image_grids: tuple[tuple[int, int], ...]
    budget: EffectiveBudget
    logical: NDArray[np.int32]
    retention: NDArray[np.float32]


@dataclass(frozen=True)
class LogitStats:
    """Statistics of the distribution that a token was chosen from, before temperature.

    Attributes:
        logprob: of the chosen token, nats.
        entropy: of the whole distribution, nats.
        margin: log-probability of the first minus the second candidate, nats.
        top_ids: the most probable token ids, best first.
        top_logprobs: their log-probabilities, nats.
    """

    logprob: float
    entropy: float
    margin: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class StepTrace:
    """One generated token of one request.

    `heads` is the *producing* row: the query that predicted this token. The
    *reading* row (the query whose input this token is) is the next step's
    `heads`; after the last token the engine yields one closing step that
    carries only it (`token_id` -1, `finish_reason` set, `logits` `None`).
    Where an end token closed the answer, the last word's reading row came with
    the end token, and the closing step has no `heads`.

    Attributes:
        prompt: the prompt this answers; the same object on every step of a request.
        index: 0-based index of the token in the answer.
        position: token index of the query in the sequence.
        token_id: the chosen token; -1 on the closing step.
        text: what this token adds to the answer's text; may be empty while bytes are incomplete.
        is_special: whether the token is an end or another control token.
        logits: statistics of the distribution it was chosen from.
        heads: statistics of the query that predicted it; `None` where the request wants none.
        finish_reason: set on the closing step only.
        influence: on the closing step of a request that asked for it, what each token of the answer received from later
            ones: `float32 [tokens, layers, kv_heads]`, see `introspect.influence`; NaN where that does not exist.
    """

    prompt: PromptInfo
    index: int
    position: int
    token_id: int
    text: str
    is_special: bool
    logits: LogitStats | None
    heads: HeadRow | None
    finish_reason: FinishReason | None = None
    influence: NDArray[np.float32] | None = None
