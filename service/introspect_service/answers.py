"""Writes the answer to a request in OpenAI's shape, whole or chunk by chunk, with its signals where clients keep them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property

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
    ChunkChoice,
    Delta,
    Logprobs,
    TokenLogprob,
    Usage,
)
from introspect_service.schemas import ChatRequest
from introspect_service.signals import token_introspection


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

    def whole(self, tokens: Sequence[list[TokenLogprob]], published: Sequence[bool]) -> str:
        """The JSON of the `ChatCompletion` of a request that does not stream, from the tokens of each choice, which all have ended."""
        choices = [
            Choice(
                index=index,
                message=AssistantMessage(content=ended.text),
                logprobs=Logprobs(content=tokens[index]) if self._chat.logprobs else None,
                finish_reason=ended.finish_reason,
            )
            for index, ended in sorted(self._ended.items())
        ]
        whole = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=self._usage(),
        )
        return self._with_signals(whole.model_dump_json(), published)

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
        before, after = self._around
        return before + choice + after

    def closing(self, index: int, ended: Ended, published: Sequence[bool]) -> list[str]:
        """The JSON of the last chunks of a choice: text that no token carried, and the finish chunk.

        Behind the last choice, `published` tells of all of them: its finish chunk has the signals, and the usage follows
        where it was asked for.
        """
        chunks = [as_json(self._chunk(ChunkChoice(index=index, delta=Delta(content=ended.rest))))] if ended.rest else []
        finish = as_json(self._chunk(ChunkChoice(index=index, delta=Delta(), finish_reason=ended.finish_reason)))
        if not self.is_complete:
            return [*chunks, finish]
        chunks.append(self._with_signals(finish, published))
        if self._chat.stream_options is not None and self._chat.stream_options.include_usage:
            chunks.append(as_json(self._chunk(None).model_copy(update={"usage": self._usage()})))
        return chunks

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What stands around the choices of every chunk, taken from the model of one."""
        before, between, after = as_json(self._chunk(None)).partition('"choices":[')
        return before + between, after

    def _chunk(self, choice: ChunkChoice | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=[choice] if choice else [],
        )

    def _with_signals(self, written: str, published: Sequence[bool]) -> str:
        """A response that is written without its signals, and its `CompletionIntrospection` where that was asked for."""
        options, schema = self._chat.introspection, self._backend.feature_schema
        if options is None:
            return written
        said = [
            ended.json.of(choice_id(self._id, index), schema, options=options, published=published[index])
            for index, ended in sorted(self._ended.items())
        ]
        whole = said[0]
        if len(said) > 1:
            choices = ",".join([f'{each[:-1]},"index":{index}}}' for index, each in enumerate(said)])
            whole = f'{whole[:-1]},"choices":[{choices}]}}'
        return f'{written[:-1]},"introspection":{whole}}}'

    def _usage(self) -> Usage:
        """The prompt counts once, as OpenAI counts it, and the tokens of all choices."""
        prompt = len(self._ended[0].prompt.token_ids)
        generated = sum(ended.tokens for ended in self._ended.values())
        return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)
