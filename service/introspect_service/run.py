"""The answers to one request as the event loop sees them: begun, their tokens, and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import Request as HttpRequest

from introspect_service.errors import ApiError, internal_error
from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.publisher import AnswerPublisher
from introspect_service.runner import Failed, Listener, Ticket


class Run:
    """Receives every choice of one request from the runner, publishes it, and hands it on to the response.

    Args:
        publishers: one a choice; hears everything of its choice first.
        submit: puts a choice in line by its index, with the listener it is given. There must be room for all of them.
        others: listeners of each choice that hear everything too.

    Raises:
        QueueFullError: there is no room in the line.
    """

    def __init__(
        self, publishers: Sequence[AnswerPublisher], submit: Callable[[int, Listener], Ticket], others: Sequence[Sequence[Listener]]
    ) -> None:
        self._publishers = publishers
        # Bounded by the longest answer that can be asked for, times the choices.
        self._heard: asyncio.Queue[tuple[int, Progress | Failed]] = asyncio.Queue()
        listeners = [self._listener(index, (publisher.hear, *others[index])) for index, publisher in enumerate(publishers)]
        self._tickets = [submit(index, listener) for index, listener in enumerate(listeners)]
        self._watch: asyncio.Task[None] | None = None

    def _listener(self, index: int, listeners: Sequence[Listener]) -> Listener:
        def hear(what: Progress | Failed) -> None:
            for listener in listeners:
                listener(what)
            self._heard.put_nowait((index, what))

        return hear

    def cancel_when_gone(self, http: HttpRequest) -> None:
        """End the answers where their client leaves before they are complete."""

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            self._cancel()

        self._watch = asyncio.create_task(watch())

    async def begun(self) -> None:
        """Wait for the prompt to be read for the first time: what cannot be served is refused then.

        Raises:
            ApiError: the request cannot be served.
        """
        _, what = await self._heard.get()
        if isinstance(what, Failed):
            self.close()
            raise failure(what)
        if not isinstance(what, Begun):
            raise TypeError(f"expected Begun first, got {type(what).__name__}")

    async def rest(self) -> AsyncIterator[tuple[int, Token | Ended]]:
        """What follows, each with the index of its choice, as it comes; ends when every choice has ended.

        Raises:
            ApiError: a choice failed; the others are of no use without it.
        """
        left = len(self._tickets)
        while left:
            index, what = await self._heard.get()
            if isinstance(what, Failed):
                raise failure(what)
            if isinstance(what, Token | Ended):
                yield index, what
            left -= isinstance(what, Ended)

    async def published(self) -> list[bool]:
        """Of each choice, whether the stream's server has confirmed the completed event."""
        return await asyncio.gather(*(publisher.confirmed() for publisher in self._publishers))

    def close(self) -> None:
        """Nobody listens any more; unfinished answers are ended."""
        self._cancel()
        if self._watch is not None:
            self._watch.cancel()

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()


def failure(failed: Failed) -> ApiError:
    """What the client is told."""
    if failed.reason == "invalid_request":
        return ApiError(400, failed.message, code="invalid_request")
    if failed.reason == "cancelled":
        return ApiError(503, f"The answer was given up: {failed.message}.", code="cancelled", headers={"Retry-After": "5"})
    return internal_error()
