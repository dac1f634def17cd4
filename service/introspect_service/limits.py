"""Two plain ASGI layers around the app: a bound on the body, and a request id."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from introspect_service.errors import ApiError, error_body

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
    """Answers 413 to a body over `max_bytes`, whether its length is declared or it comes in chunks.

    The body is collected before the app sees the request, so nothing is parsed
    that would be refused.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a request within the bound."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > _DRAIN_FACTOR * self._max:
            await self._refuse(send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max:
                if more:
                    await self._drain(receive)
                await self._refuse(send)
                return
        await self._app(scope, _replay(bytes(body), receive), send)

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
        error = ApiError(413, f"The request body is larger than {self._max} bytes.", code="request_too_large")
        body = error_body(error).model_dump_json().encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


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
