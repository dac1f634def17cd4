"""Who may ask, and how often: API keys and a token bucket for each caller, in front of everything else."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from introspect_service.errors import ApiError, error_body
from introspect_service.limits import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health", "/health/live", "/health/ready"})
"""What needs no key: the health of the server, and the page, which asks for one."""

MOST_CALLERS = 10_000


class ApiKeys:
    """Answers 401 to who has no key.

    Digests of equal length are compared, each in constant time and all of them always, so that no answer's time tells
    how much of a key was right (CVE-2025-59425). The path is the one that is routed, never a URL put together from
    headers (CVE-2026-48746).

    Args:
        app: what is guarded.
        keys: any of them opens; none means that there is no guard.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for who has a key."""
        if scope["type"] != "http" or not self._digests or _is_open(scope):
            await self._app(scope, receive, send)
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        digest = _digest(given.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() == b"bearer" and any(matches):
            scope["introspect.caller"] = digest
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401, "Give a valid API key: Authorization: Bearer KEY.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
        await refuse(error, send)


class RateLimit:
    """Answers 429 to a caller who posts more often than allowed: a bucket that holds a minute's worth and fills evenly.

    A caller is a key, or where there are no keys an address.

    Args:
        app: what is guarded.
        per_minute: requests a minute; nothing means no limit.
        refused: is told of each refusal.
        clock: seconds that only go forward.
    """

    def __init__(
        self, app: ASGIApp, per_minute: int | None, refused: Callable[[Scope], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._capacity, self._refused, self._clock = app, per_minute, refused, clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for who has not asked too often."""
        if scope["type"] != "http" or self._capacity is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        wait = self.take(scope.get("introspect.caller") or str((scope.get("client") or ("",))[0]).encode())
        if wait == 0:
            await self._app(scope, receive, send)
            return
        self._refused(scope)
        message = f"More than {self._capacity} requests a minute; try again in {wait} s."
        await refuse(ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait)}), send)

    def take(self, caller: bytes) -> int:
        """Take one request out of a caller's bucket; how many whole seconds to wait where it is empty, else 0."""
        if self._capacity is None:
            return 0
        now, rate = self._clock(), self._capacity / 60
        left, since = self._buckets.pop(caller, (float(self._capacity), now))
        left = min(float(self._capacity), left + (now - since) * rate)
        granted = left >= 1
        self._buckets[caller] = (left - granted, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)  # the one that has been silent longest
        return 0 if granted else max(1, math.ceil((1 - left) / rate))


async def refuse(error: ApiError, send: Send) -> None:
    """Send `error` without the app's help."""
    body = error_body(error).model_dump_json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith("/page/"))
