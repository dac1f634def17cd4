"""One answer while it grows: its tokens, its text, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.detokenizing import Detokenizer
from introspect.errors import IntrospectError, RequestError
from introspect.loading import LoadedModel
from introspect.pool import Runs
from introspect.prompt import EncodedPrompt
from introspect.sampling import UNFORCED
from introspect.types import FinishReason, HeadRow, LogitStats, PromptInfo, Request, StepTrace
from introspect_kernels import Segment


@dataclass(eq=False)
class Answer:
    """A request in the scheduler's hands.

    Attributes:
        prompt: what is answered.
        forced: the tokens to take instead of chosen ones.
        generator: draws its tokens.
        at: prompt index of the next query while the prompt is not read to its end.
        info: what is told of the prompt, once it is prefilled.
        runs: where its entries lie, once it is prefilled.
        room: entries that each of its runs can still take.
        tokens: the answer so far.
        text: what they say, as far as it is sure.
        finish: set once only its reading row is still to come.
        keeps: whether its entries stay when it has ended, for the next turn.
        columns: of each of its queries, what the entries that it completes have received, where that is wanted; see `introspect.influence`.
    """

    prompt: EncodedPrompt
    forced: Sequence[int] | None = None
    generator: torch.Generator = field(init=False)
    at: int = field(init=False)
    info: PromptInfo | None = None
    runs: Runs | None = None
    room: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    keeps: bool = False
    columns: list[NDArray[np.float32]] = field(default_factory=list)
    _draw: float | None = None
    _said: Detokenizer | None = None

    def __post_init__(self) -> None:
        """The query of the last prompt token is the first one that is decoded."""
        self.generator, self.at = _generator(self.prompt.request), self.prompt.length - 1

    @property
    def limit(self) -> int:
        """Tokens at most."""
        return len(self.forced) if self.forced is not None else self.prompt.request.sampling.max_tokens

    @property
    def is_feeding(self) -> bool:
        """Whether the next query is a prompt token that nothing is predicted from."""
        return self.at < self.prompt.length - 1

    @property
    def position(self) -> int:
        """Token index of the next query."""
        return self.at + len(self.tokens)

    @property
    def query(self) -> list[int]:
        """The next query: its token, position and segment, the token that is forced to follow, and its rotary position on each axis."""
        forced = UNFORCED if self.forced is None or self.is_feeding or self.finish is not None else int(self.forced[len(self.tokens)])
        prompt, made = self.prompt, len(self.tokens)
        if made:
            place = prompt.next_position + made - 1
            return [self.tokens[-1], self.position, int(Segment.GENERATED), forced, *[place] * prompt.positions.shape[0]]
        rotary: list[int] = prompt.positions[:, self.at].tolist()
        return [int(prompt.token_ids[self.at]), self.position, int(prompt.segments[self.at]), forced, *rotary]

    @property
    def samples(self) -> bool:
        """Whether the next token is drawn."""
        return self.forced is None and not self.is_feeding and self.finish is None and self.prompt.request.sampling.temperature > 0

    @property
    def sampling(self) -> tuple[float, float, float]:
        """Temperature, nucleus and draw of the next token; the draw stays the same however often its step is tried."""
        if not self.samples:
            return 0.0, 1.0, 0.0
        if self._draw is None:
            self._draw = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        return self.prompt.request.sampling.temperature, self.prompt.request.sampling.top_p, self._draw

    def advance(self, loaded: LoadedModel, token: int, stats: LogitStats, heads: HeadRow | None) -> tuple[list[StepTrace], bool]:
        """The steps that one decode step makes of it, and whether it is over.

        Raises:
            RequestError: the token that was to be forced does not exist.
            IntrospectError: the model's logits are not numbers.
        """
        info = cast("PromptInfo", self.info)  # it is prefilled
        index, position = len(self.tokens), self.position
        if self.finish is not None:
            return [StepTrace(info, index, position, -1, "", True, None, heads, self.finish)], True
        if self.forced is not None and token != self.forced[index]:
            raise RequestError(f"the model has no token {self.forced[index]} that could be forced")
        if math.isnan(stats.logprob):
            raise IntrospectError("the model's logits are not numbers (NaN): it may compute in a dtype of too small a range")
        self._draw = None
        self.tokens.append(token)
        is_end, before = token in loaded.eos_ids, self.text
        is_last = is_end or len(self.tokens) >= self.limit
        stopped = self._extend_text(loaded, is_last=is_last)
        is_special = is_end or token in loaded.special_ids
        step = StepTrace(info, index, position, token, self.text[len(before) :], is_special, stats, heads)
        if is_end and self.forced is None:
            return [step, StepTrace(info, index + 1, position + 1, -1, "", True, None, None, "stop")], True
        if stopped or len(self.tokens) >= self.limit:
            self.finish = "stop" if stopped else "length"
            if not self.prompt.request.signals:  # nobody waits for the row that reads the last token
                return [step, StepTrace(info, index + 1, position + 1, -1, "", True, None, None, self.finish)], True
        return [step], False

    def _extend_text(self, loaded: LoadedModel, *, is_last: bool) -> bool:
        """Bring the text up to the tokens; True if a stop string ended it.

        What may be the beginning of a stop string is held back until it is known not to be.
        """
        stop = self.prompt.request.sampling.stop
        if self._said is None:
            self._said = Detokenizer(loaded.tokenizer)
        text = self._said(self.tokens)
        if text.endswith("\ufffd") and not is_last:  # bytes of an unfinished character: wait for the rest
            return False
        found = [at for s in stop if (at := text.find(s)) >= 0]
        if found:
            self.text = text[: min(found)]
        else:
            self.text = text if is_last else text[: len(text) - _held_back(text, stop)]
        return bool(found)


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((k for s in stop for k in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:k])), default=0)


def _generator(request: Request) -> torch.Generator:
    generator = torch.Generator()
    if request.sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.sampling.seed)
    return generator
