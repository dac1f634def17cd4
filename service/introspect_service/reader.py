"""Reads the stream of signals from another process: `for event in read(): print(event.type, event.data)`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from redis import Redis

from introspect_service.events import STREAM_KEY, SignalEvent
from introspect_service.settings import EMBEDDED_REDIS_PORT

DEFAULT_URL = f"redis://127.0.0.1:{EMBEDDED_REDIS_PORT}"
"""Where the embedded Valkey listens unless it was told otherwise."""

_BLOCK_SECONDS = 1.0
_COUNT = 128


def read(url: str = DEFAULT_URL, *, start: str = "$", idle_seconds: float | None = None) -> Iterator[SignalEvent]:
    """Yield events as they come.

    Args:
        url: the server's address.
        start: `$` for what comes from now on, `0` for all that the stream still holds, or the stream id of the last
            entry read.
        idle_seconds: end after so long without an event; never where absent.

    Raises:
        redis.exceptions.RedisError: the server is away.
        ValueError: an entry is no event of this version.
    """
    with Redis.from_url(url, decode_responses=True, socket_timeout=10 * _BLOCK_SECONDS) as client:
        last = _end(client) if start == "$" else start
        heard = time.monotonic()
        while idle_seconds is None or time.monotonic() - heard < idle_seconds:
            block = _BLOCK_SECONDS if idle_seconds is None else min(_BLOCK_SECONDS, idle_seconds)
            for entry_id, fields in entries_of(client.xread({STREAM_KEY: last}, count=_COUNT, block=max(1, int(1000 * block)))):
                last, heard = entry_id, time.monotonic()
                yield SignalEvent.from_fields(fields)


def _end(client: Redis) -> str:
    """The id of the newest entry: unlike `$`, it misses nothing between two reads."""
    newest: Any = client.xrevrange(STREAM_KEY, count=1)
    return str(newest[0][0]) if newest else "0"


def entries_of(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """Ids and fields of a reply to XREAD or XREADGROUP: a list of streams, or a mapping where the client speaks RESP3."""
    streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or ()]
    return [entry for entries in streams for entry in _flat(entries)]


def _flat(entries: Any) -> Any:
    # RESP3 wraps the entries of a stream once more.
    return entries[0] if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], tuple | list) else entries
