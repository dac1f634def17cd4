"""Several answers at once: requests wait in a bounded line, and what they yield goes to the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal

from introspect.errors import RequestError
from introspect.types import Request
from introspect_service.errors import QueueFullError
from introspect_service.generation import Ended, Generates, Progress, Scores, generate_answer

logger = logging.getLogger(__name__)

Reason = Literal["invalid_request", "cancelled", "internal_error"]


@dataclass(frozen=True)
class Failed:
    """The answer will not be completed; `message` is safe to show."""

    reason: Reason
    message: str


Listener = Callable[[Progress | Failed], None]


@dataclass
class Ticket:
    """A request in the runner's hands."""

    request: Request
    listener: Listener
    scorer: Scores
    _left: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for this answer any more; it ends before its next token."""
        self._left.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._left.is_set()


class Runner:
    """Runs up to `max_batch` requests at once, each scored on a thread of its own while the engine decodes them together.

    Args:
        engine: makes the steps; asked from several threads.
        queue_depth: how many requests may wait.
        max_batch: how many run at once.
    """

    def __init__(self, engine: Generates, *, queue_depth: int, max_batch: int = 1) -> None:
        self._engine = engine
        self._waiting: queue.Queue[Ticket | None] = queue.Queue()
        self._depth, self._count, self._running = queue_depth, 0, 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [threading.Thread(target=self._run, name=f"introspect-answer-{n}", daemon=True) for n in range(max_batch)]
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
        return max(0, self._count - self._running)

    def check_room(self, wanted: int = 1) -> None:
        """Cheap test before a request's pictures are decoded, and whether all its choices find a place.

        Raises:
            QueueFullError: `wanted` requests would be refused now.
        """
        places = len(self._threads)
        if self._count + wanted > self._depth + places:
            raise QueueFullError(max(1, round(self._mean_seconds * self._count / places)))

    def submit(self, request: Request, listener: Listener, scorer: Scores) -> Ticket:
        """Put a request in line, to be scored by `scorer`; its listener hears `Progress` and, where it is not completed, `Failed`.

        Raises:
            QueueFullError: too many wait already.
        """
        with self._lock:
            self.check_room()
            self._count += 1
        ticket = Ticket(request, listener, scorer)
        self._waiting.put(ticket)
        return ticket

    def close(self, seconds: float = 5.0) -> None:
        """End the running answers at their next token, fail those that wait, and join the threads."""
        self._closing.set()
        for _ in self._threads:
            self._waiting.put(None)
        until = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            with self._lock:
                self._running += 1
            try:
                self._serve(ticket)
            finally:
                with self._lock:
                    self._count -= 1
                    self._running -= 1

    def _serve(self, ticket: Ticket) -> None:
        started = time.perf_counter()
        try:
            self._relay(ticket)
        except RequestError as error:
            self._tell(ticket, Failed("invalid_request", str(error)))
        except Exception:  # one request's failure must not end the thread that serves others
            logger.exception("request %s failed", ticket.request.id)
            self._tell(ticket, Failed("internal_error", "the server failed"))
        self._mean_seconds += 0.2 * (time.perf_counter() - started - self._mean_seconds)

    def _relay(self, ticket: Ticket) -> None:
        if not self._stopped(ticket):
            with closing(generate_answer(self._engine, ticket.scorer, ticket.request)) as answer:
                for progress in answer:
                    self._tell(ticket, progress)
                    if isinstance(progress, Ended):
                        return
                    if self._stopped(ticket):
                        break
        self._tell(ticket, Failed("cancelled", "the server is shutting down" if self._closing.is_set() else "the client left"))

    def _stopped(self, ticket: Ticket) -> bool:
        return ticket.cancelled or self._closing.is_set()

    def _tell(self, ticket: Ticket, what: Progress | Failed) -> None:
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # the loop closed in between: nobody is left to tell
                self._loop.call_soon_threadsafe(ticket.listener, what)
