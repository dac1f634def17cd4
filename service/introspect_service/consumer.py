"""Works through the stream, alone or with others: `Consumer(handle, group="pager", types=["introspect.alert.v1"]).run()`.

Consumers of one group share its events; each group sees all of them. An event
is done when its handler returns. Where the handler fails, or the process dies,
the event stays pending and is claimed after a while, by any consumer of the
group; after so many deliveries it goes to the stream `introspect:v1:dead`.
Delivery is at least once: a handler must bear an event that it has seen.

Only commands of Redis 6.2 and Valkey are used.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from introspect_service.events import DATA_MODELS, DEAD_KEY, STREAM_KEY, SignalEvent
from introspect_service.reader import DEFAULT_URL, entries_of

logger = logging.getLogger(__name__)

DEAD_LENGTH = 10_000
"""Entries that the stream of dead letters keeps, about."""

_REMEMBERED = 10_000
_AWAY_SECONDS = 0.5
_TIMEOUT_SECONDS = 10.0
_GONE = ("NOGROUP", "UNBLOCKED")

Entry = tuple[str, dict[str, str]]


@dataclass
class ConsumerCounters:
    """What a consumer did.

    Attributes:
        handled: events whose handler returned.
        failed: handlers that raised.
        claimed: entries taken over from a consumer that did not finish them.
        repeated: events that this consumer had handled already, under another entry.
        skipped: entries of types that are not wanted or not known.
        dead: entries given up.
        lost: entries that the stream had dropped before they were handled.
    """

    handled: int = 0
    failed: int = 0
    claimed: int = 0
    repeated: int = 0
    skipped: int = 0
    dead: int = 0
    lost: int = 0


class Consumer:
    """One member of a group.

    Args:
        handle: is called with each event, one after another.
        group: which group; it is made where it is not there yet.
        url: the server's address.
        name: of this consumer, unique in its group; host and process by default. Under the name of an earlier run, what
            that left pending comes first.
        start: where a new group begins: `0` with all that is still there, `$` with what comes from now on, or behind the
            entry of that id. A group that exists goes on where it stands; see `rewind`.
        types: event types to handle, the others being skipped; all by default.
        claim_seconds: how long another consumer may take for an entry before it is claimed; well above what handling
            `count` entries takes.
        most_deliveries: how often an entry is tried before it goes to the dead letters.
        count: entries taken at once.

    Raises:
        ValueError: a type is not one of the stream's.
    """

    def __init__(
        self,
        handle: Callable[[SignalEvent], object],
        *,
        group: str,
        url: str = DEFAULT_URL,
        name: str | None = None,
        start: str = "0",
        types: Collection[str] | None = None,
        claim_seconds: float = 60.0,
        most_deliveries: int = 5,
        count: int = 16,
    ) -> None:
        if unknown := set(types or ()) - set(DATA_MODELS):
            raise ValueError(f"types: expected some of {', '.join(DATA_MODELS)}, got {', '.join(sorted(unknown))}")
        self.group, self.name = group, name or f"{socket.gethostname()}-{os.getpid()}"
        self.counters = ConsumerCounters()
        self._handle, self._start, self._types, self._count = handle, start, frozenset(types or DATA_MODELS), count
        self._claim_seconds, self._most = claim_seconds, most_deliveries
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._has_group = False
        self._next_claim = 0.0
        self._stopping = threading.Event()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    def run(self, *, idle_seconds: float | None = None) -> None:
        """Handle events until `stop`; a server that is away is waited for.

        Args:
            idle_seconds: end after so long without an entry; never where absent.

        Raises:
            redis.exceptions.RedisError: the server refuses, for instance for want of a password.
        """
        heard, history = time.monotonic(), "0"
        while not self._stopping.is_set() and (idle_seconds is None or time.monotonic() - heard < idle_seconds):
            try:
                self._join()
                if history:  # what an earlier run under this name left
                    found = self._read(history, 0)
                    history = found[-1][0] if found else ""
                else:
                    found = self._stale() or self._read(">", min(1.0, idle_seconds or 1.0, max(0.01, self._next_claim - time.monotonic())))
                for entry in found:
                    self._take(entry)
                heard = time.monotonic() if found else heard
            except (LostConnectionError, LateError, OSError) as problem:
                logger.info("the stream's server does not answer (%s); waiting for it", type(problem).__name__)
                self._has_group = False
                self._stopping.wait(_AWAY_SECONDS)
            except ResponseError as problem:
                if not str(problem).startswith(_GONE):
                    raise
                self._has_group, self._start = False, "0"  # the server came back empty: what it has since is all new

    def stop(self) -> None:
        """Let `run` end behind the entries in hand; may be called from a signal handler or another thread."""
        self._stopping.set()

    def rewind(self, entry_id: str) -> None:
        """Let the whole group go on behind the entry of that id: `0` for everything that is still there, `$` for none of it."""
        self._join()
        self._redis.xgroup_setid(STREAM_KEY, self.group, entry_id)

    def close(self) -> None:
        """Leave the group, unless something is pending under this name; call it when `run` has ended."""
        try:
            if not self._pending(min_idle=None, consumer=self.name):
                self._redis.xgroup_delconsumer(STREAM_KEY, self.group, self.name)
        except (LostConnectionError, LateError, OSError, ResponseError) as problem:
            logger.info("the group keeps the name %s (%s)", self.name, type(problem).__name__)
        self._redis.close()

    def _join(self) -> None:
        if self._has_group:
            return
        try:
            self._redis.xgroup_create(STREAM_KEY, self.group, id=self._start, mkstream=True)
        except ResponseError as problem:
            if not str(problem).startswith("BUSYGROUP"):
                raise
        self._has_group = True

    def _read(self, behind: str, seconds: float) -> list[Entry]:
        block = max(1, int(1000 * seconds)) if seconds else None
        reply: Any = self._redis.xreadgroup(self.group, self.name, {STREAM_KEY: behind}, count=self._count, block=block)
        return entries_of(reply)

    def _pending(self, *, min_idle: float | None, consumer: str | None = None) -> list[dict[str, Any]]:
        idle = None if min_idle is None else int(1000 * min_idle)
        found: Any = self._redis.xpending_range(STREAM_KEY, self.group, "-", "+", self._count, consumername=consumer, idle=idle)
        return cast("list[dict[str, Any]]", found)

    def _stale(self) -> list[Entry]:
        """Entries that some consumer has not finished in time, now this one's; those tried too often are given up."""
        if time.monotonic() < self._next_claim:
            return []
        tries = {str(entry["message_id"]): int(entry["times_delivered"]) for entry in self._pending(min_idle=self._claim_seconds)}
        if not tries:
            self._next_claim = time.monotonic() + self._claim_seconds / 4
            return []
        reply: Any = self._redis.xclaim(STREAM_KEY, self.group, self.name, int(1000 * self._claim_seconds), cast("Any", list(tries)))
        claimed = [entry for entry in reply if entry[1] is not None]
        self.counters.claimed += len(claimed)
        for entry_id in set(tries) - {entry_id for entry_id, _ in claimed}:
            if not self._redis.xrange(STREAM_KEY, entry_id, entry_id) and self._redis.xack(STREAM_KEY, self.group, entry_id):
                self.counters.lost += 1
        for entry in claimed:
            if tries[entry[0]] >= self._most:
                self._bury(entry, f"not acknowledged in {tries[entry[0]]} deliveries")
        return [entry for entry in claimed if tries[entry[0]] < self._most]

    def _take(self, entry: Entry) -> None:
        entry_id, fields = entry
        if not fields:  # trimmed while it was pending
            self.counters.lost += 1
            self._acknowledge(entry_id)
            return
        if fields.get("type") not in self._types:
            self.counters.skipped += 1
            self._acknowledge(entry_id)
            return
        try:
            event = SignalEvent.from_fields(fields)
        except ValueError:
            self._bury(entry, "not an event of this version")
            return
        if (event.source, event.id) in self._seen:
            self.counters.repeated += 1
            self._acknowledge(entry_id)
            return
        try:
            self._handle(event)
        except Exception as problem:
            logger.exception("entry %s could not be handled", entry_id)
            self.counters.failed += 1
            self._failed(entry, problem)
            return
        self.counters.handled += 1
        self._acknowledge(entry_id)
        self._seen[event.source, event.id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _failed(self, entry: Entry, problem: Exception) -> None:
        """Give an entry up where this was its last delivery; else it is claimed again when its time has come."""
        found: Any = self._redis.xpending_range(STREAM_KEY, self.group, entry[0], entry[0], 1)
        if found and found[0]["times_delivered"] >= self._most:
            self._bury(entry, f"{type(problem).__name__}: {problem}"[:500])

    def _acknowledge(self, entry_id: str) -> None:
        self._redis.xack(STREAM_KEY, self.group, entry_id)

    def _bury(self, entry: Entry, reason: str) -> None:
        entry_id, fields = entry
        letter: dict[Any, Any] = {**fields, "deadentry": entry_id, "deadgroup": self.group, "deadreason": reason}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(DEAD_KEY, letter, maxlen=DEAD_LENGTH, approximate=True)
            pipe.xack(STREAM_KEY, self.group, entry_id)
            pipe.execute()
        self.counters.dead += 1
        logger.error("entry %s is given up: %s", entry_id, reason)
