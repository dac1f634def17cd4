"""The engine in a process of its own: HTTP, probes and stream take nothing of the Python lock that decoding needs."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import torch

from introspect.budgeting import check_budget
from introspect.callers import EngineClosedError, ManyCallers, Sink
from introspect.errors import RequestError
from introspect.loading import LoadedModel
from introspect.outline import load_outline
from introspect.pool import KVBytes
from introspect.prompt import EncodedPrompt, encode
from introspect.types import PromptInfo, Request
from introspect_service import wire
from introspect_service.engine_link import EngineLostError, Link
from introspect_service.launching import Launched, launch

logger = logging.getLogger(__name__)

TRIES = 2
"""To how many processes a request is given of which none has said anything of it: it may be what ends them."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between processes of which none says anything; a request ends the pause."""

_begun: weakref.WeakSet[EngineProcess] = weakref.WeakSet()
_owner = os.getpid()


@atexit.register
def _close_all() -> None:
    """End the processes with this one; a fork of this one leaves them alone."""
    for engine in list(_begun) if os.getpid() == _owner else ():
        engine.close()


@dataclass(eq=False)
class _Ticket:
    """An answer on its way.

    Attributes:
        sink: who hears of it.
        command: what is sent of it, until the process has said something of it; with it the prompt, which other choices may share.
        prompt: what is known of the prompt, once it is read.
        tries: how many processes it was given to.
    """

    sink: Sink
    command: tuple[bytes, EncodedPrompt] | None
    prompt: PromptInfo | None = None
    tries: int = 0


class EngineProcess(ManyCallers):
    """Prompts are encoded here; the model is loaded and computes in a process that belongs to this object.

    Where that process ends by itself (no memory, an error of the device), the answers that it was making fail and another
    one begins; what it has said nothing of yet, and what is asked meanwhile, is answered by that one. Where a process
    cannot load the model, who waits is told so, and it is tried again: now and then, and with the next request.

    torch is given as many threads here as there, of which only encoding makes use.

    Args:
        opening: what to load.
        launched: the first process, where it has been begun already.

    Raises:
        IntrospectError: the model cannot be loaded.
        OSError: there is no room for another process.
    """

    def __init__(self, opening: wire.Opening, launched: Launched | None = None) -> None:
        super().__init__()
        self._opening = opening
        self._changed = threading.Condition()
        self._tickets: dict[int, _Ticket] = {}
        self._count = 0
        self._status = wire.Status()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._link: Link | None = Link(launched or launch())
        self._is_ready = self._has_told = False
        try:
            ready = self._link.open(opening)
            self._facts, self._loaded = ready.facts, load_outline(ready.facts)
        except BaseException:
            self._link.end()
            raise
        torch.set_num_threads(ready.threads)
        self._start_thread()

    @property
    def loaded(self) -> LoadedModel:
        """The model without its weights, see `introspect.outline`."""
        return self._loaded

    @property
    def alive(self) -> bool:
        """Whether a process is ready."""
        return self._is_ready

    @property
    def running(self) -> int:
        """Requests that are prefilled or decoded."""
        return self._status.running

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return max(0, len(self._tickets) - self._status.running)

    @property
    def kv_bytes(self) -> KVBytes:
        """Memory of keys and values, as of the last time that a request began, was prefilled, or ended."""
        return KVBytes(self._status.allocated, self._status.owned, self._status.filled)

    @property
    def process_id(self) -> int | None:
        """Of the process, where there is one."""
        link = self._link
        return link.process_id if link is not None else None

    def close(self, seconds: float = 10.0) -> None:
        """End every answer and the process. A later request starts anew."""
        with self._changed:
            thread = self._thread
            self._closing.set()
            if self._link is not None:
                self._link.hang_up()
            self._changed.notify_all()
        if thread is not None:
            thread.join(seconds)

    def _encode(self, request: Request) -> EncodedPrompt:
        prompt = encode(self._loaded, request)
        check_budget(self._loaded, request.budget, prompt.length)
        return prompt

    def _submit(self, prompt: EncodedPrompt, sink: Sink) -> Callable[[], None]:
        with self._changed:
            self._count += 1
            number = self._count
        ticket = _Ticket(sink, (wire.encode(wire.begin(number, prompt)), prompt))
        with self._changed:
            self._tickets[number] = ticket
            if self._thread is None or not self._thread.is_alive():
                self._start_thread()
            elif self._is_ready:
                self._send(ticket)
            self._changed.notify_all()
        return lambda: self._leave(number)

    def _leave(self, number: int) -> None:
        with self._changed:
            if self._tickets.pop(number, None) is not None and self._link is not None:
                self._link.send(wire.encode(wire.Leave(number)))

    def _send(self, ticket: _Ticket) -> None:
        if ticket.command is not None and self._link is not None:
            ticket.tries += 1
            self._link.send(ticket.command[0])

    def _start_thread(self) -> None:
        self._closing.clear()
        self._thread = threading.Thread(target=self._keep, name="introspect-engine", daemon=True)
        _begun.add(self)
        self._thread.start()

    def _keep(self) -> None:
        """Keep a process at work until this engine is closed."""
        pause = _SHORTEST_PAUSE
        while not self._closing.is_set():
            self._has_told = False
            is_open, problem = self._work()
            status = self._end_process()
            if self._closing.is_set():
                break
            self.restarts += 1
            self._tell(self._take(but_untried=is_open), problem)
            pause, wait = (_SHORTEST_PAUSE, 0.0) if self._has_told else (min(2 * pause, _LONGEST_PAUSE), pause)
            words = "the engine's process ended (status %s); another one begins in %g s, or when it is asked for"
            logger.error(words, status, wait, exc_info=problem)
            with self._changed:
                self._changed.wait_for(lambda: self._closing.is_set() or bool(self._tickets), wait)
        self._end_process()
        with self._changed:
            self._thread = None
            left = self._take()
        self._tell(left, EngineClosedError("the engine was closed"))

    def _work(self) -> tuple[bool, Exception]:
        """Begin a process where there is none, and hand on what it tells; whether it was ready, and why it ended."""
        is_open = self._link is not None
        try:
            if not is_open:
                self._begin_again()
                is_open = True
            self._listen()
        except Exception as problem:  # noqa: BLE001 - who waits is told, and another process begins
            return is_open, problem
        return is_open, EngineLostError("the engine's process ended")

    def _begin_again(self) -> None:
        link = Link(launch())
        with self._changed:
            self._link = link
            if self._closing.is_set():
                link.hang_up()
        ready = link.open(self._opening)
        if replace(ready.facts, heads_path=None) != replace(self._facts, heads_path=None):
            raise EngineLostError("the model's files have changed since the service was started: start it again")
        logger.warning("the engine's process is ready again")

    def _listen(self) -> None:
        with self._changed:
            link, self._is_ready = self._link, not self._closing.is_set()
            for ticket in self._tickets.values():
                self._send(ticket)
        for told in link.told() if link is not None else ():
            self._has_told = self._has_told or bool(told.said)
            if told.status is not None:
                self._status = told.status
            for said in told.said:
                self._hand_on(said)
            for lost in told.lost:
                if (ended := self._tickets.pop(lost.number, None)) is not None:
                    ended.sink(RequestError(lost.message) if lost.is_request else EngineLostError(lost.message))

    def _hand_on(self, said: wire.Said) -> None:
        ticket = self._tickets.get(said.number)
        if ticket is None:  # nobody listens any more
            return
        if said.prompt is not None:
            ticket.prompt, ticket.command = wire.info_of(said.prompt), None
        if ticket.prompt is None:
            raise EngineLostError("expected an answer's first step to tell of its prompt")
        if said.finish_reason is not None:
            self._tickets.pop(said.number, None)
        ticket.sink(wire.step_of(said, ticket.prompt, self._facts))

    def _end_process(self) -> int | None:
        """Nothing is left of the process; its exit status."""
        with self._changed:
            link, self._link = self._link, None
            self._is_ready, self._status = False, wire.Status()
        return link.end() if link is not None else None

    def _take(self, *, but_untried: bool = False) -> list[_Ticket]:
        """Let go of all answers; with `but_untried` not of those that another process may be given."""
        with self._changed:
            kept = {number: ticket for number, ticket in self._tickets.items() if but_untried and ticket.command and ticket.tries < TRIES}
            taken = [ticket for number, ticket in self._tickets.items() if number not in kept]
            self._tickets = kept
        return taken

    def _tell(self, tickets: list[_Ticket], problem: Exception) -> None:
        for ticket in tickets:
            ticket.sink(copy(problem))  # each is raised by itself
