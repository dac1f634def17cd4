"""Events to a Redis stream, so that nothing that makes them ever waits.

Publishing appends to a bounded queue in memory. One task writes it out in
pipelined batches and tries again when the server is away. Where the queue is
full the oldest *step* event is dropped; alerts, completions and all others are
kept and delivered after recovery. All of it is counted.

Only commands of Redis 6.2 and Valkey are used.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from introspect_service.events import STREAM_KEY

logger = logging.getLogger(__name__)

BATCH = 64
"""Most entries in one pipeline."""

KEPT_LIMIT, KEPT_BYTES = 20_000, 64_000_000
"""How many events other than steps may wait, and how large all of them together, about: hours of an outage. Beyond it the
oldest go too."""

_OBJECT_BYTES = 1_000
"""What an event takes in memory beside its text, about."""

TIMEOUT_SECONDS = 2.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


@dataclass
class BusCounters:
    """What has happened to events since the start; `dropped` by reason."""

    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed_writes: int = 0


class Delivery:
    """What became of one event."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._confirmed = False

    def settle(self, *, confirmed: bool) -> None:
        """Say that the server confirmed the event, or that it never will."""
        self._confirmed = confirmed
        self._settled.set()

    async def confirmed(self, seconds: float) -> bool:
        """Whether the server confirms the event within `seconds`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self._confirmed


class Publishable(Protocol):
    """What goes out: `events.SignalEvent`, or a `step_event.StepEvent`."""

    @property
    def droppable(self) -> bool:
        """Whether it may be dropped where the stream cannot keep up."""
        ...

    def to_fields(self) -> dict[str, str]:
        """The fields of the stream entry."""
        ...


class SignalBus(Protocol):
    """Where events go."""

    counters: BusCounters

    @property
    def connected(self) -> bool:
        """Whether the last write went through."""
        ...

    @property
    def waiting(self) -> int:
        """Events not yet confirmed."""
        ...

    def publish(self, event: Publishable) -> Delivery:
        """Take an event; returns at once."""
        ...

    async def start(self) -> None:
        """Begin to write."""
        ...

    async def close(self, seconds: float = TIMEOUT_SECONDS) -> None:
        """Write out what waits, for at most `seconds`, and stop."""
        ...


class OffBus:
    """Takes every event and sends none."""

    def __init__(self) -> None:
        self.counters = BusCounters()
        self.connected = False
        self.waiting = 0

    def publish(self, event: Publishable) -> Delivery:  # noqa: ARG002 - the protocol's
        """Drop the event: the stream is switched off."""
        delivery = Delivery()
        delivery.settle(confirmed=False)
        return delivery

    async def start(self) -> None:
        """Do nothing."""

    async def close(self, seconds: float = TIMEOUT_SECONDS) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Entry:
    order: int
    fields: dict[FieldT, EncodableT]
    delivery: Delivery
    size: int


class RedisBus:
    """Events to the stream of a Redis or Valkey server.

    Args:
        url: `redis://`, `rediss://` or `unix://` address.
        max_length: entries that the stream keeps, about.
        queue_length: step events that may wait.
    """

    def __init__(self, url: str, *, max_length: int, queue_length: int) -> None:
        self.counters = BusCounters()
        # No retries inside the client: this class knows better when to try again, and a hidden retry repeats an event.
        self._redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        self._max_length, self._queue_length = max_length, queue_length
        self._steps: deque[_Entry] = deque()
        self._kept: deque[_Entry] = deque()
        self._kept_bytes = 0
        self._in_flight: list[_Entry] = []
        self._order = itertools.count()
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the last write went through."""
        return self._connected

    @property
    def waiting(self) -> int:
        """Events not yet confirmed."""
        return len(self._steps) + len(self._kept) + len(self._in_flight)

    def publish(self, event: Publishable) -> Delivery:
        """Take an event; returns at once. Call it on the event loop."""
        fields = event.to_fields()
        entry = _Entry(next(self._order), dict(fields.items()), Delivery(), _OBJECT_BYTES + sum(map(len, fields.values())))
        if event.droppable:
            if len(self._steps) >= self._queue_length:
                self._drop(self._steps.popleft(), "step_overflow")
            self._steps.append(entry)
        else:
            while self._kept and (len(self._kept) >= KEPT_LIMIT or self._kept_bytes + entry.size > KEPT_BYTES):
                self._drop(self._take_kept(), "kept_overflow")
            self._kept.append(entry)
            self._kept_bytes += entry.size
        self._wake.set()
        self._idle.clear()
        return entry.delivery

    def _take_kept(self) -> _Entry:
        entry = self._kept.popleft()
        self._kept_bytes -= entry.size
        return entry

    def _drop(self, entry: _Entry, reason: str) -> None:
        entry.delivery.settle(confirmed=False)
        self.counters.dropped[reason] += 1

    async def start(self) -> None:
        """Begin to write; a server that is away is waited for, not an error."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._redis.execute_command("PING")  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            self._connected = True
        except (RedisError, OSError, TimeoutError) as problem:
            logger.warning("the stream's server does not answer (%s); events wait for it", type(problem).__name__)
        self._writer = asyncio.create_task(self._write(), name="introspect-bus")

    async def close(self, seconds: float = TIMEOUT_SECONDS) -> None:
        """Write out what waits, for at most `seconds`, and stop; what is left is counted as dropped."""
        if self._writer is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
        left = [*self._in_flight, *self._kept, *self._steps]
        for entry in left:
            entry.delivery.settle(confirmed=False)
        if left:
            self.counters.dropped["shutdown"] += len(left)
        await self._redis.aclose()

    async def _write(self) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            await self._wake.wait()
            self._fill()
            if not self._in_flight:
                self._wake.clear()
                self._idle.set()
                continue
            problem = await self._send()
            if problem is None:
                self._say(connected=True)
                pause = _SHORTEST_PAUSE
                continue
            self.counters.failed_writes += 1
            self._say(connected=False, problem=problem)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _fill(self) -> None:
        """Move entries from the two lines into the batch, in the order in which they came."""
        while len(self._in_flight) < BATCH and (self._steps or self._kept):
            from_steps = self._steps and (not self._kept or self._steps[0].order < self._kept[0].order)
            self._in_flight.append(self._steps.popleft() if from_steps else self._take_kept())

    async def _send(self) -> Exception | None:
        """Write the batch; what the server did not confirm stays in it. The first problem, if there was one."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for entry in self._in_flight:
                        pipe.xadd(STREAM_KEY, entry.fields, maxlen=self._max_length, approximate=True)
                    results = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as problem:
            return problem
        except Exception as problem:  # a bug must not end the only writer
            logger.exception("events cannot be written")
            return problem
        unsent, problems = [], []
        for entry, result in zip(self._in_flight, results, strict=True):
            if isinstance(result, Exception):
                unsent.append(entry)
                problems.append(result)
            else:
                self.counters.published += 1
                entry.delivery.settle(confirmed=True)
        self._in_flight = unsent
        return problems[0] if problems else None

    def _say(self, *, connected: bool, problem: Exception | None = None) -> None:
        if connected != self._connected:
            self._connected = connected
            if connected:
                logger.info("the stream takes events again; %d wait", self.waiting)
            else:
                logger.warning("the stream takes no events (%s); answers go on, events wait", type(problem).__name__)
