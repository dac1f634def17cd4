"""Several answers at once: requests wait in a bounded line, their steps are scored, and what they yield goes to the event loop.

One thread begins requests, one scores the steps of all of them. More threads would not make more of it: each would
wait for Python's one lock, and where the engine computes in this process, its thread for each of them.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from introspect.errors import RequestError
from introspect.types import Request, StepTrace
from introspect_service.errors import QueueFullError
from introspect_service.generation import Ended, Progress, Scores, Unfolding

logger = logging.getLogger(__name__)

Reason = Literal["invalid_request", "cancelled", "internal_error"]


@dataclass(frozen=True)
class Failed:
    """The answer will not be completed; `message` is safe to show."""

    reason: Reason
    message: str


Listener = Callable[[Progress | Failed], None]


class Follows(Protocol):
    """The part of `introspect.callers.ManyCallers` that is used here."""

    def follow(self, request: Request, sink: Callable[[StepTrace | Exception], None]) -> Callable[[], None]:
        """Run a request; gives what ends it."""
        ...


@dataclass(eq=False)
class Ticket:
    """A request in the runner's hands.

    Attributes:
        request: what is asked.
        listener: hears of it.
        scorer: scores it.
        on_cancel: is called once, when nobody waits for it any more.
        answer: as far as it has come; nothing while it waits.
        leave: ends it in the engine.
        is_over: its listener has heard the last of it.
        began: when its turn came.
    """

    request: Request
    listener: Listener
    scorer: Scores
    on_cancel: Callable[[Ticket], None]
    answer: Unfolding | None = None
    leave: Callable[[], None] | None = None
    is_over: bool = False
    began: float = 0.0
    _left: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for this answer any more; it ends at once."""
        if not self._left.is_set():
            self._left.set()
            self.on_cancel(self)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._left.is_set()


class Runner:
    """Runs up to `max_batch` requests at once, which the engine decodes together.

    Args:
        engine: makes the steps.
        queue_depth: how many requests may wait.
        max_batch: how many run at once.
    """

    def __init__(self, engine: Follows, *, queue_depth: int, max_batch: int = 1) -> None:
        self._engine, self._depth, self._most = engine, queue_depth, max_batch
        self._line: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[tuple[Ticket, StepTrace | Exception | None] | None] = queue.SimpleQueue()
        self._places = threading.Semaphore(max_batch)
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._running = 0
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._said: deque[tuple[Listener, Progress | Failed]] = deque()
        self._is_calling = False
        self._threads = [
            threading.Thread(target=self._begin_all, name="introspect-begin", daemon=True),
            threading.Thread(target=self._score_all, name="introspect-score", daemon=True),
        ]
        self._mean_seconds = 1.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to take requests; listeners are called on `loop`."""
        self._loop = loop
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are being taken and run."""
        return all(thread.is_alive() for thread in self._threads) and not self._closing.is_set()

    @property
    def running(self) -> int:
        """How many requests the engine works on."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many requests wait, the running ones aside."""
        return max(0, len(self._tickets) - self._running)

    def check_room(self, wanted: int = 1) -> None:
        """Cheap test before a request's pictures are decoded, and whether all its choices find a place.

        Raises:
            QueueFullError: `wanted` requests would be refused now.
        """
        count = len(self._tickets)
        if count + wanted > self._depth + self._most:
            raise QueueFullError(max(1, round(self._mean_seconds * count / self._most)))

    def submit(self, request: Request, listener: Listener, scorer: Scores) -> Ticket:
        """Put a request in line, to be scored by `scorer`; its listener hears `Progress` and, where it is not completed, `Failed`.

        Raises:
            QueueFullError: too many wait already.
        """
        ticket = Ticket(request, listener, scorer, lambda ticket: self._heard.put((ticket, None)))
        with self._lock:
            self.check_room()
            self._tickets.add(ticket)
        self._line.put(ticket)
        return ticket

    def close(self, seconds: float = 5.0) -> None:
        """End the running answers, fail those that wait, and join the threads."""
        self._closing.set()
        with self._lock:
            tickets = list(self._tickets)
        for ticket in tickets:
            self._heard.put((ticket, None))
        self._heard.put(None)
        self._line.put(None)
        self._places.release()  # where a request waits for one
        until = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _begin_all(self) -> None:
        while (ticket := self._line.get()) is not None:
            self._places.acquire()
            with self._lock:
                if ticket.is_over:  # given up while it waited
                    self._places.release()
                    continue
                ticket.answer, ticket.began = Unfolding(ticket.scorer), time.perf_counter()
                self._running += 1
            try:
                leave = self._engine.follow(ticket.request, partial(self._hear, ticket))
            except Exception as problem:  # noqa: BLE001 - told to its client
                self._hear(ticket, problem)
                continue
            self._followed(ticket, leave)

    def _followed(self, ticket: Ticket, leave: Callable[[], None]) -> None:
        """The engine has it now; or has it for nothing, where it was given up meanwhile."""
        with self._lock:
            ticket.leave = leave
            is_over = ticket.is_over
        if is_over:
            leave()

    def _hear(self, ticket: Ticket, event: StepTrace | Exception) -> None:
        self._heard.put((ticket, event))

    def _score_all(self) -> None:
        """Score all that has come before the event loop is woken: the engine tells of a step of every running answer at once."""
        is_open = True
        while is_open:
            first = self._heard.get()
            for item in (first, *(self._heard.get() for _ in range(self._heard.qsize()))):
                if item is None:
                    is_open = False
                    break
                ticket, event = item
                if not ticket.is_over:
                    self._take(ticket, event)
            self._wake()

    def _take(self, ticket: Ticket, event: StepTrace | Exception | None) -> None:
        """The next thing that became of an answer; nothing where somebody only says that it is to end."""
        try:
            if ticket.cancelled or self._closing.is_set():
                why = "the server is shutting down" if self._closing.is_set() else "the client left"
                self._end(ticket, Failed("cancelled", why))
            elif isinstance(event, Exception):
                raise event
            elif event is not None and ticket.answer is not None:
                for progress in ticket.answer.take(event):
                    if isinstance(progress, Ended):
                        self._end(ticket, progress)
                    else:
                        self._tell(ticket, progress)
        except RequestError as error:
            self._end(ticket, Failed("invalid_request", str(error)))
        except Exception:  # one request's failure must not end the thread that serves others
            logger.exception("request %s failed", ticket.request.id)
            self._end(ticket, Failed("internal_error", "the server failed"))

    def _end(self, ticket: Ticket, last: Ended | Failed) -> None:
        with self._lock:
            ticket.is_over = True
            self._tickets.discard(ticket)
            if ticket.answer is not None:
                self._running -= 1
            leave = ticket.leave
        if ticket.answer is not None:
            self._mean_seconds += 0.2 * (time.perf_counter() - ticket.began - self._mean_seconds)
            self._places.release()
        if leave is not None:
            leave()
        self._tell(ticket, last)

    def _tell(self, ticket: Ticket, what: Progress | Failed) -> None:
        """Keep it for the event loop, which `_wake` wakes."""
        self._said.append((ticket.listener, what))

    def _wake(self) -> None:
        """Let the event loop take what was said; once for all that is said before it does."""
        if self._said and not self._is_calling and self._loop is not None and not self._loop.is_closed():
            self._is_calling = True
            with suppress(RuntimeError):  # the loop closed in between: nobody is left to tell
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._is_calling = False  # before the first is taken: what is said from now on wakes the loop again
        while self._said:
            listener, what = self._said.popleft()
            try:
                listener(what)
            except Exception:  # others are still to be told
                logger.exception("a listener failed")
