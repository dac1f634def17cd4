"""Writes the answer to a request in OpenAI's shape, whole or chunk by chunk, with its signals where clients keep them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from pydantic import BaseModel

from introspect_service.backend import Backend
from introspect_service.choices import choice_id
from introspect_service.generation import Ended, Token
from introspect_service.pieces import Pieces
from introspect_service.responses import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceIntrospection,
    ChunkChoice,
    CompletionIntrospection,
    Delta,
    Logprobs,
    TokenLogprob,
    Usage,
)
from introspect_service.schemas import ChatRequest, IntrospectionOptions
from introspect_service.signals import AnswerIntrospection, answer_introspection, token_introspection


def as_json(model: BaseModel) -> str:
    """One line, ASCII only: some clients split lines at U+2028 and its like, which JSON may carry as they are."""
    return json.dumps(model.model_dump(mode="json"), separators=(",", ":"))


class AnswerWriter:
    """Writes the answer to one request, with all its choices.

    Args:
        completion_id: the answer's id.
        chat: what was asked for.
        backend: who answers.
    """

    def __init__(self, completion_id: str, chat: ChatRequest, backend: Backend) -> None:
        self._id, self._chat, self._backend = completion_id, chat, backend
        self._created = int(time.time())
        self._fingerprint = f"fp_{backend.model.fingerprint[:16]}"
        self._pieces = [Pieces(backend.model.tokenizer, chat.top_logprobs or 0) for _ in range(chat.choices)]
        self._ended: dict[int, Ended] = {}
        # What stands around the choices of every chunk, taken from the model of one.
        before, between, after = as_json(self._chunk(None)).partition('"choices":[')
        self._before, self._after = before + between, after

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended."""
        return len(self._ended) == self._chat.choices

    def end(self, index: int, ended: Ended) -> None:
        """Take the end of a choice."""
        self._ended[index] = ended

    def token(self, index: int, token: Token) -> TokenLogprob | None:
        """The token's entry in `logprobs.content`; nothing where they were not asked for, or it is a control token."""
        if not self._chat.logprobs or token.step.is_special:
            return None
        entry = self._pieces[index].add(token.step)
        if self._chat.introspection is None:
            return entry
        return entry.model_copy(update={"introspection": token_introspection(token.signal, self._chat.introspection)})

    def whole(self, tokens: Sequence[list[TokenLogprob]], published: Sequence[bool]) -> ChatCompletion:
        """The response of a request that does not stream, from the tokens of each choice; every choice has ended."""
        choices = [
            Choice(
                index=index,
                message=AssistantMessage(content=ended.text),
                logprobs=Logprobs(content=tokens[index]) if self._chat.logprobs else None,
                finish_reason=ended.finish_reason,
            )
            for index, ended in sorted(self._ended.items())
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=self._usage(),
            introspection=self._introspection(published),
        )

    def opening(self) -> list[ChatCompletionChunk]:
        """The first chunks, one a choice."""
        return [self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content=""))) for index in range(self._chat.choices)]

    def piece(self, index: int, token: Token) -> str | None:
        """The JSON of one token's `ChatCompletionChunk`; nothing where it adds nothing that was asked for.

        Written without models but for what few ask for: it is what a token waits for last.
        """
        entry = self.token(index, token)
        if entry is None and not token.step.text:
            return None
        logprobs = as_json(Logprobs(content=[entry])) if entry else "null"
        choice = f'{{"index":{index},"delta":{{"content":{json.dumps(token.step.text)}}},"logprobs":{logprobs},"finish_reason":null}}'
        return self._before + choice + self._after

    def closing(self, index: int, ended: Ended, published: Sequence[bool]) -> list[ChatCompletionChunk]:
        """The last chunks of a choice: text that no token carried, and the finish chunk.

        Behind the last choice, `published` tells of all of them: its finish chunk has the signals, and the usage follows
        where it was asked for.
        """
        chunks = [self._chunk(ChunkChoice(index=index, delta=Delta(content=ended.rest)))] if ended.rest else []
        finish = self._chunk(ChunkChoice(index=index, delta=Delta(), finish_reason=ended.finish_reason))
        if not self.is_complete:
            return [*chunks, finish]
        chunks.append(finish.model_copy(update={"introspection": self._introspection(published)}))
        if self._chat.stream_options is not None and self._chat.stream_options.include_usage:
            chunks.append(self._chunk(None).model_copy(update={"usage": self._usage()}))
        return chunks

    def _chunk(self, choice: ChunkChoice | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=[choice] if choice else [],
        )

    def _introspection(self, published: Sequence[bool]) -> CompletionIntrospection | None:
        options = self._chat.introspection
        if options is None:
            return None
        said = [self._signals(index, published[index], options) for index in range(self._chat.choices)]
        choices = tuple(ChoiceIntrospection(index=index, **dict(each)) for index, each in enumerate(said)) if len(said) > 1 else None
        return CompletionIntrospection(**dict(said[0]), choices=choices)

    def _signals(self, index: int, published: bool, options: IntrospectionOptions) -> AnswerIntrospection:
        ended = self._ended[index]
        return answer_introspection(
            choice_id(self._id, index),
            ended.signal,
            ended.prompt.budget,
            self._backend.feature_schema,
            options=options,
            published=published,
        )

    def _usage(self) -> Usage:
        """The prompt counts once, as OpenAI counts it, and the tokens of all choices."""
        prompt = len(self._ended[0].prompt.token_ids)
        generated = sum(ended.tokens for ended in self._ended.values())
        return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)
