"""Events to a Redis stream, so that nothing that makes them ever waits.

Publishing appends to a bounded queue in memory. One task writes it out in
pipelined batches and tries again when the server is away. An event waits a
moment for others to share its pipeline with, for one of one event takes nearly as
long as one of ten; but nothing waits that somebody waits for. Where the queue is
full the oldest *step* event is dropped; alerts, completions and all others are
kept and delivered after recovery. All of it is counted.

Only commands of Redis 6.2 and Valkey are used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
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
"""Most entries in one pipeline; where so many wait, they go at once."""

LINGER_SECONDS = 0.05
"""How long an event waits for others at most, where nobody is in a hurry for it."""

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
    """What became of one event.

    Args:
        hurry: has the event written at once.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._settled = asyncio.Event()
        self._confirmed = False

    def hurry(self) -> None:
        """Have the event written at once, with all that came before it."""
        if not self._settled.is_set():
            self._hurry()

    def settle(self, *, confirmed: bool) -> None:
        """Say that the server confirmed the event, or that it never will."""
        self._confirmed = confirmed
        self._settled.set()

    async def confirmed(self, seconds: float) -> bool:
        """Whether the server confirms the event within `seconds`; it is written at once."""
        self.hurry()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self._confirmed


class Publishable(Protocol):
    """What goes out: `events.SignalEvent`, or an `events_json.WrittenEvent`."""

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
        delivery = Delivery(lambda: None)
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
        self._taken = self._due = 0
        """Events taken so far, and how many of these are to be written at once."""
        self._timer: asyncio.TimerHandle | None = None
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
        entry = _Entry(self._taken, dict(fields.items()), Delivery(self._hurry), _OBJECT_BYTES + sum(map(len, fields.values())))
        self._taken += 1
        if event.droppable:
            if len(self._steps) >= self._queue_length:
                self._drop(self._steps.popleft(), "step_overflow")
            self._steps.append(entry)
        else:
            while self._kept and (len(self._kept) >= KEPT_LIMIT or self._kept_bytes + entry.size > KEPT_BYTES):
                self._drop(self._take_kept(), "kept_overflow")
            self._kept.append(entry)
            self._kept_bytes += entry.size
        self._idle.clear()
        if len(self._steps) + len(self._kept) >= BATCH or 2 * len(self._steps) >= self._queue_length:
            self._hurry()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._hurry)
        return entry.delivery

    def _hurry(self) -> None:
        """Have everything that was taken so far written at once."""
        self._stop_timer()
        self._due = self._taken
        self._wake.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
            self._hurry()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
            self._writer.cancel()
            with suppress(asyncio.CancelledError):
                await self._writer
        self._stop_timer()
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
                if not self.waiting:
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
        """Move entries from the two lines into the batch, in the order in which they came; none where none is to go yet."""
        if not self._in_flight and min((line[0].order for line in (self._steps, self._kept) if line), default=self._due) >= self._due:
            return
        while len(self._in_flight) < BATCH and (self._steps or self._kept):
            from_steps = self._steps and (not self._kept or self._steps[0].order < self._kept[0].order)
            self._in_flight.append(self._steps.popleft() if from_steps else self._take_kept())
        if not self._steps and not self._kept:
            self._stop_timer()

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
