"""Writes one answer in OpenAI's shape, whole or chunk by chunk, with its signals where clients keep them."""

from __future__ import annotations

import time

from introspect_service.backend import Backend
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
from introspect_service.signals import AnswerIntrospection, answer_introspection, token_introspection


class AnswerWriter:
    """Writes the answer to one request.

    Args:
        completion_id: the answer's id.
        chat: what was asked for.
        backend: who answers.
    """

    def __init__(self, completion_id: str, chat: ChatRequest, backend: Backend) -> None:
        self._id, self._chat, self._backend = completion_id, chat, backend
        self._created = int(time.time())
        self._fingerprint = f"fp_{backend.model.fingerprint[:16]}"
        self._pieces = Pieces(backend.model.tokenizer, chat.top_logprobs or 0)

    def token(self, token: Token) -> TokenLogprob | None:
        """The token's entry in `logprobs.content`; nothing where they were not asked for, or it is a control token."""
        if not self._chat.logprobs or token.step.is_special:
            return None
        entry = self._pieces.add(token.step)
        if self._chat.introspection is None:
            return entry
        return entry.model_copy(update={"introspection": token_introspection(token.signal, self._chat.introspection)})

    def whole(self, tokens: list[TokenLogprob], ended: Ended, *, published: bool) -> ChatCompletion:
        """The response of a request that does not stream."""
        logprobs = Logprobs(content=tokens) if self._chat.logprobs else None
        choice = Choice(message=AssistantMessage(content=ended.text), logprobs=logprobs, finish_reason=ended.finish_reason)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=[choice],
            usage=_usage(ended),
            introspection=self._introspection(ended, published),
        )

    def opening(self) -> ChatCompletionChunk:
        """The first chunk."""
        return self._chunk(ChunkChoice(delta=Delta(role="assistant", content="")))

    def piece(self, token: Token) -> ChatCompletionChunk | None:
        """The chunk of one token; nothing where it adds nothing that was asked for."""
        entry = self.token(token)
        if entry is None and not token.step.text:
            return None
        logprobs = Logprobs(content=[entry]) if entry else None
        return self._chunk(ChunkChoice(delta=Delta(content=token.step.text), logprobs=logprobs))

    def closing(self, ended: Ended, *, published: bool) -> list[ChatCompletionChunk]:
        """The last chunks: text that no token carried, the finish chunk with the signals, and the usage where it was asked for."""
        chunks = [self._chunk(ChunkChoice(delta=Delta(content=ended.rest)))] if ended.rest else []
        finish = self._chunk(ChunkChoice(delta=Delta(), finish_reason=ended.finish_reason))
        chunks.append(finish.model_copy(update={"introspection": self._introspection(ended, published)}))
        if self._chat.stream_options is not None and self._chat.stream_options.include_usage:
            chunks.append(self._chunk(None).model_copy(update={"usage": _usage(ended)}))
        return chunks

    def _chunk(self, choice: ChunkChoice | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._backend.model.name,
            system_fingerprint=self._fingerprint,
            choices=[choice] if choice else [],
        )

    def _introspection(self, ended: Ended, published: bool) -> AnswerIntrospection | None:
        options = self._chat.introspection
        if options is None:
            return None
        return answer_introspection(
            self._id, ended.signal, ended.prompt.budget, self._backend.feature_schema, options=options, published=published
        )


def _usage(ended: Ended) -> Usage:
    prompt = len(ended.prompt.token_ids)
    return Usage(prompt_tokens=prompt, completion_tokens=ended.tokens, total_tokens=prompt + ended.tokens)
