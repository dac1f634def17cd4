"""One engine for many callers: requests from any thread or event loop decode together."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable

from introspect.answer import Answer
from introspect.callers import EngineClosedError, ManyCallers, Sink
from introspect.engine import Engine
from introspect.loading import LoadedModel
from introspect.pool import KVBytes
from introspect.prompt import EncodedPrompt
from introspect.scheduler import Scheduler
from introspect.types import Request, StepTrace

logger = logging.getLogger(__name__)

_begun: weakref.WeakSet[AsyncEngine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the threads before the interpreter ends: one that is inside torch then would abort the process, whatever its exit status."""
    for engine in list(_begun):
        engine.close()


class _Ticket:
    """A request on its way: where its steps go, and once it is in line, its answer."""

    def __init__(self, prompt: EncodedPrompt, sink: Sink) -> None:
        self.prompt, self.sink = prompt, sink
        self.answer: Answer | None = None
        self.cancelled = False


class AsyncEngine(ManyCallers):
    """Runs requests as they come, on a thread of this process that starts with the first one.

    Args:
        engine: the model and its limits.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._changed = threading.Condition()
        self._coming: deque[_Ticket] = deque()
        self._going: deque[_Ticket] = deque()
        self._tickets: dict[Answer, _Ticket] = {}
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._bytes, self._noted = KVBytes(), (0, 0)

    @property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self._engine.loaded

    @property
    def alive(self) -> bool:
        """Always: the thread starts with a request that finds none."""
        return True

    @property
    def running(self) -> int:
        """Requests that are prefilled or decoded."""
        return self._scheduler.running if self._scheduler is not None else 0

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._coming) + (self._scheduler.waiting if self._scheduler is not None else 0)

    @property
    def kv_bytes(self) -> KVBytes:
        """Memory of keys and values, as of the last time that a request began, was prefilled, or ended."""
        return self._bytes

    def close(self, seconds: float = 10.0) -> None:
        """End every answer and the thread. A later request starts anew."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join(seconds)

    def _encode(self, request: Request) -> EncodedPrompt:
        return self._engine.encode(request)

    def _submit(self, prompt: EncodedPrompt, sink: Sink) -> Callable[[], None]:
        ticket = _Ticket(prompt, sink)
        with self._changed:
            self._coming.append(ticket)
            if self._thread is None or not self._thread.is_alive():
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="introspect-decode", daemon=True)
                self._thread.start()
                _begun.add(self)
            self._changed.notify()
        return lambda: self._cancel(ticket)

    def _cancel(self, ticket: _Ticket) -> None:
        with self._changed:
            ticket.cancelled = True
            self._going.append(ticket)
            self._changed.notify()

    def _run(self) -> None:
        scheduler = self._scheduler = self._engine.scheduler()
        try:
            while self._take(scheduler):
                events = scheduler.step()
                self._note(scheduler)
                for answer, event in events:
                    self._deliver(answer, event)
        except Exception as problem:
            logger.exception("the engine failed")
            self._end(scheduler, problem)
            raise
        self._end(scheduler, EngineClosedError("the engine was closed"))

    def _take(self, scheduler: Scheduler) -> bool:
        """Wait until there is work, take what came and let go what left; False when the engine is closed."""
        with self._changed:
            while not (self._closing or self._coming or self._going or scheduler.has_work):
                self._changed.wait()
            coming, going = list(self._coming), list(self._going)
            self._coming.clear()
            self._going.clear()
            closing = self._closing
        for ticket in coming:
            if not ticket.cancelled:
                try:
                    ticket.answer = scheduler.submit(ticket.prompt)
                    self._tickets[ticket.answer] = ticket
                except Exception as problem:  # noqa: BLE001 - it is this request's own
                    ticket.sink(problem)
        for ticket in going:
            if ticket.answer is not None and self._tickets.pop(ticket.answer, None) is not None:
                scheduler.cancel(ticket.answer)
        self._note(scheduler)
        return not closing

    def _deliver(self, answer: Answer, event: StepTrace | Exception) -> None:
        is_last = isinstance(event, Exception) or event.finish_reason is not None
        ticket = self._tickets.pop(answer) if is_last else self._tickets[answer]
        ticket.sink(event)

    def _note(self, scheduler: Scheduler) -> None:
        """Keep the memory that is in use for who asks; lengths are not read from the device while nothing changes."""
        if self._noted != (seen := (scheduler.running, scheduler.decoding)):
            self._noted, self._bytes = seen, scheduler.kv_bytes

    def _end(self, scheduler: Scheduler, problem: Exception) -> None:
        """Free all memory and tell whoever still waits, even where freeing fails."""
        try:
            scheduler.close()
            self._note(scheduler)
        finally:
            with self._changed:
                tickets = [*self._tickets.values(), *self._coming]
                self._tickets.clear()
                self._coming.clear()
                self._scheduler = self._thread = None
            for ticket in tickets:
                ticket.sink(problem)
