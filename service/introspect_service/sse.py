"""Server-Sent Events of our own routes: named events with ids, a comment where nothing happens, an end when the server stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse

from introspect_service.errors import ApiError

PING_SECONDS = 15.0


def frame(event: str, data: Any, event_id: str | None = None) -> str:
    """One event. The data is ASCII JSON: some clients split lines at U+2028, which JSON may carry as it is."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


class Viewers:
    """How many streams are open at once, and the word that the server stops.

    Args:
        limit: most streams at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.count = limit, 0
        self.stopping = asyncio.Event()

    def respond(self, events: AsyncGenerator[str, None]) -> StreamingResponse:
        """A response of `events`, which are `frame`s; an empty one says nothing.

        Raises:
            ApiError: 503, too many streams are open.
        """
        if self.count >= self._limit:
            message = f"{self._limit} event streams are open, which is the most; try again later."
            raise ApiError(503, message, code="too_many_streams", headers={"Retry-After": "5"})
        self.count += 1
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return _Counted(self, self._until_stopped(events), media_type="text/event-stream", headers=headers)

    async def _until_stopped(self, events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
        stop = asyncio.ensure_future(self.stopping.wait())
        following: asyncio.Task[str | None] | None = None
        try:
            yield ": open\n\n"
            while not self.stopping.is_set():
                following = following or asyncio.create_task(_next(events))
                await asyncio.wait({following, stop}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    yield ": nothing new\n\n"
                    continue
                said, following = following.result(), None
                if said is None:
                    return
                yield said
        finally:
            stop.cancel()
            if following is not None:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following
            await events.aclose()


async def _next(events: AsyncGenerator[str, None]) -> str | None:
    return await anext(events, None)


class _Counted(StreamingResponse):
    """Gives its place back however it ends, even where its client left before it began."""

    def __init__(self, viewers: Viewers, content: AsyncIterator[str], **options: Any) -> None:
        super().__init__(content, **options)
        self._viewers = viewers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._viewers.count -= 1
