"""What an engine offers to many callers at once, wherever it computes."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import replace

from introspect.errors import IntrospectError
from introspect.loading import LoadedModel
from introspect.pool import KVBytes
from introspect.prompt import EncodedPrompt
from introspect.types import Request, StepTrace

Sink = Callable[[StepTrace | Exception], None]


class EngineClosedError(IntrospectError):
    """The engine was closed before the answer was complete."""


class ManyCallers(ABC):
    """An engine that takes requests as they come, from any thread or event loop, and decodes them together.

    Memory belongs to a request from the moment it leaves the line until its
    last step, its error, or the moment its iterator is closed.

    Attributes:
        restarts: how often what computes ended by itself, so that another had to begin.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._encoding = threading.Lock()
        self._last: weakref.ref[EncodedPrompt] | None = None

    @property
    @abstractmethod
    def loaded(self) -> LoadedModel:
        """The model."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a request that comes now is worked on at once."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Requests that are prefilled or decoded."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Requests in line."""

    @property
    @abstractmethod
    def kv_bytes(self) -> KVBytes:
        """Memory of keys and values, as of the last time that a request began, was prefilled, or ended."""

    @abstractmethod
    def close(self, seconds: float = 10.0) -> None:
        """End every answer, and wait for what computes to end. A later request starts anew."""

    @abstractmethod
    def _encode(self, request: Request) -> EncodedPrompt:
        """See `Engine.encode`."""

    @abstractmethod
    def _submit(self, prompt: EncodedPrompt, sink: Sink) -> Callable[[], None]:
        """Put a prompt in line; gives what ends its answer, which may be called behind its end too."""

    def encode(self, request: Request) -> EncodedPrompt:
        """See `Engine.encode`; from one thread at a time. Choices of one request, which share its messages, are encoded once."""
        with self._encoding:
            last = self._last() if self._last is not None else None
            is_choice = last is not None and _is_choice(request, last.request)
            prompt = replace(last, request=request) if last is not None and is_choice else self._encode(request)
            self._last = weakref.ref(prompt)
            return prompt

    async def stream(self, request: Request) -> AsyncGenerator[StepTrace, None]:
        """The steps of one request as they come. Closing the generator ends it and frees its memory.

        Raises:
            RequestError: it cannot be served.
            EngineClosedError: the engine was closed.
        """
        loop = asyncio.get_running_loop()
        prompt = await asyncio.to_thread(self.encode, request)
        events: asyncio.Queue[StepTrace | Exception] = asyncio.Queue()

        def sink(event: StepTrace | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        leave = self._submit(prompt, sink)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            leave()

    def generate(self, requests: Sequence[Request]) -> Generator[StepTrace, None, None]:
        """Like `Engine.generate`, beside everything else that runs; may be called from several threads.

        Raises:
            RequestError: a request cannot be served; raised before any step of any request.
            EngineClosedError: the engine was closed.
        """
        prompts = [self.encode(request) for request in requests]
        events: queue.SimpleQueue[StepTrace | Exception] = queue.SimpleQueue()
        leaves: list[Callable[[], None]] = []
        left = len(prompts)
        try:
            leaves.extend(self._submit(prompt, events.put) for prompt in prompts)
            while left:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                left -= event.finish_reason is not None
                yield event
        finally:
            for leave in leaves:
                leave()

    def follow(self, request: Request, sink: Sink) -> Callable[[], None]:
        """Run a request beside everything else that runs, and be called back, without a thread or loop of one's own.

        Args:
            request: what to answer.
            sink: takes each step, or the error that ends the answer, on the engine's thread: it must not dally, nor raise.

        Returns:
            What ends the answer and frees its memory; call it when nobody listens any more, even behind its end.

        Raises:
            RequestError: the request cannot be served.
        """
        return self._submit(self.encode(request), sink)


def _is_choice(one: Request, other: Request) -> bool:
    """Whether two requests differ in nothing that their prompt depends on."""
    return one.messages is other.messages and one.budget == other.budget and one.sampling.max_tokens == other.sampling.max_tokens
