"""One answer as the event loop sees it: begun, its tokens, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import Request as HttpRequest

from introspect_service.errors import ApiError, internal_error
from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.publisher import AnswerPublisher
from introspect_service.runner import Failed, Listener, Ticket


class Run:
    """Receives from the runner, publishes, and hands on to the response.

    Args:
        publisher: hears everything first.
        submit: puts the request in line, with the listener it is given.
        others: hear everything too.

    Raises:
        QueueFullError: there is no room in the line.
    """

    def __init__(self, publisher: AnswerPublisher, submit: Callable[[Listener], Ticket], others: Sequence[Listener] = ()) -> None:
        self._publisher, self._others = publisher, others
        # Bounded by the longest answer that can be asked for.
        self._heard: asyncio.Queue[Progress | Failed] = asyncio.Queue()
        self._ticket = submit(self._hear)
        self._watch: asyncio.Task[None] | None = None

    def _hear(self, what: Progress | Failed) -> None:
        self._publisher.hear(what)
        for listener in self._others:
            listener(what)
        self._heard.put_nowait(what)

    def cancel_when_gone(self, http: HttpRequest) -> None:
        """End the answer where its client leaves before it is complete."""

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self._ticket.cancel()

        self._watch = asyncio.create_task(watch())

    async def begun(self) -> Begun:
        """Wait for the prompt to be read.

        Raises:
            ApiError: the request cannot be served.
        """
        what = await self._heard.get()
        if isinstance(what, Failed):
            self.close()
            raise failure(what)
        if not isinstance(what, Begun):
            raise TypeError(f"expected Begun first, got {type(what).__name__}")
        return what

    async def rest(self) -> AsyncIterator[Token | Ended]:
        """What follows; ends behind `Ended`.

        Raises:
            ApiError: the answer failed.
        """
        while True:
            what = await self._heard.get()
            if isinstance(what, Failed):
                raise failure(what)
            if isinstance(what, Token | Ended):
                yield what
            if isinstance(what, Ended):
                return

    async def published(self) -> bool:
        """Whether the stream's server has confirmed the completed event."""
        return await self._publisher.confirmed()

    def close(self) -> None:
        """Nobody listens any more; an unfinished answer is ended."""
        self._ticket.cancel()
        if self._watch is not None:
            self._watch.cancel()


def failure(failed: Failed) -> ApiError:
    """What the client is told."""
    if failed.reason == "invalid_request":
        return ApiError(400, failed.message, code="invalid_request")
    if failed.reason == "cancelled":
        return ApiError(503, f"The answer was given up: {failed.message}.", code="cancelled", headers={"Retry-After": "5"})
    return internal_error()
