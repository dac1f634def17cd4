"""Plain ASGI layers around the app: bounds on the body and on slow clients, and a request id."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from introspect_service.errors import ApiError, error_body

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID_HEADER = "X-Request-Id"

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_DRAIN_FACTOR = 2
_DRAIN_SECONDS = 5.0


class BodyLimit:
    """Answers 413 to a body over `max_bytes`, whether its length is declared or it comes in chunks; 408 to one that takes too long.

    The body is collected before the app sees the request, so nothing is parsed
    that would be refused.

    Args:
        app: what is guarded.
        max_bytes: largest body.
        seconds: how long a body may take to come, which a client that sends it byte by byte would make hours.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app, self._max, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a request within the bound."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > _DRAIN_FACTOR * self._max:
            await self._refuse(send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._collect(receive)
        except TimeoutError:
            message = f"The request body did not come within {self._seconds:g} s."
            await _answer(ApiError(408, message, code="request_timeout"), send)
            return
        except _TooLargeError:
            await self._refuse(send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _collect(self, receive: Receive) -> bytes | None:
        """The body; nothing where the client left."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max:
                if more:
                    await self._drain(receive)
                raise _TooLargeError
        return bytes(body)

    async def _drain(self, receive: Receive) -> None:
        """Read on for a while: a client that is still sending would see a broken connection instead of the answer."""
        left = self._max * _DRAIN_FACTOR
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b"")) + 1
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    async def _refuse(self, send: Send) -> None:
        await _answer(ApiError(413, f"The request body is larger than {self._max} bytes.", code="request_too_large"), send)


class _TooLargeError(Exception):
    """More came than may."""


async def _answer(error: ApiError, send: Send) -> None:
    """Send `error`, and close: what is left of the request is not read."""
    body = error_body(error).model_dump_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class SendLimit:
    """Gives up a response whose client does not read it: nothing could be sent for `seconds`, and what waits takes memory.

    Args:
        app: what is guarded.
        seconds: how long one piece of a response may take to go out.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; what it sends to a client that does not read raises, as a broken connection does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_up = False

        async def send_in_time(message: Message) -> None:
            nonlocal given_up
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError as problem:
                given_up = True
                raise OSError("the client does not read") from problem

        try:
            await self._app(scope, receive, send_in_time)
        except Exception:
            if not given_up:
                raise
            logger.warning("a client did not read for %g s: its connection is closed", self._seconds)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class RequestId:
    """Gives every response an `X-Request-Id`: the client's own where it sent a plain one, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app and add the header."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = REQUEST_ID_HEADER.lower().encode()
        given = dict(scope["headers"]).get(name, b"")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["introspect.request_id"] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (name, request_id)]}
            await send(message)

        await self._app(scope, receive, send_with_id)
