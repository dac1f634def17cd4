"""The engine in a process of its own: HTTP, probes and stream take nothing of the Python lock that decoding needs."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import torch

from introspect import errors
from introspect.budgeting import check_budget
from introspect.callers import EngineClosedError, ManyCallers, Sink
from introspect.errors import IntrospectError, RequestError
from introspect.loading import LoadedModel
from introspect.outline import load_outline
from introspect.pool import KVBytes
from introspect.prompt import EncodedPrompt, encode
from introspect.types import PromptInfo, Request
from introspect_service import wire
from introspect_service.launching import Launched, launch

logger = logging.getLogger(__name__)


_begun: weakref.WeakSet[EngineProcess] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the processes with this one."""
    for engine in list(_begun):
        engine.close()


class EngineLostError(IntrospectError):
    """The engine's process ended, or failed, before the answer was complete."""


@dataclass(eq=False)
class _Ticket:
    """An answer on its way: who hears of it, what is still to be sent, and its prompt once that is read."""

    sink: Sink
    command: wire.Begin | None
    prompt: PromptInfo | None = None


class EngineProcess(ManyCallers):
    """Prompts are encoded here; the model is loaded and computes in a process that belongs to this object.

    Where that process ends by itself (no memory, an error of the device), its answers fail and another one begins at
    once; what is asked meanwhile waits for it. Where that one cannot load the model, it is tried again with the next request.

    Args:
        opening: what to load.
        launched: the first process, where it has been begun already.

    Raises:
        IntrospectError: the model cannot be loaded.
    """

    def __init__(self, opening: wire.Opening, launched: Launched | None = None) -> None:
        super().__init__()
        self._opening = opening
        self._changed = threading.Condition()
        self._tickets: dict[int, _Ticket] = {}
        self._count = 0
        self._status = wire.Status()
        self._launched: Launched | None = None
        self._connection: Connection | None = None
        """To a process that is ready."""
        self._closing = False
        self._thread: threading.Thread | None = None
        connection, ready = self._begin_process(launched)
        self._facts = ready.facts
        self._loaded = load_outline(ready.facts)
        torch.set_num_threads(ready.threads)
        self._start_thread(connection)

    @property
    def loaded(self) -> LoadedModel:
        """The model without its weights, see `introspect.outline`."""
        return self._loaded

    @property
    def alive(self) -> bool:
        """Whether the process is ready."""
        return self._connection is not None

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
        return self._launched.process.pid if self._launched is not None else None

    def close(self, seconds: float = 10.0) -> None:
        """End every answer and the process. A later request starts anew."""
        with self._changed:
            thread, self._closing = self._thread, True
            if self._launched is not None:
                self._launched.hang_up()
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
            ticket = self._tickets[number] = _Ticket(sink, wire.begin(number, prompt))
            if self._connection is not None:
                self._send(ticket)
            elif self._thread is None:
                self._start_thread(None)
            self._changed.notify_all()
        return lambda: self._leave(number)

    def _leave(self, number: int) -> None:
        with self._changed:
            ticket = self._tickets.pop(number, None)
            if ticket is not None and ticket.command is None:
                self._write(wire.Leave(number))

    def _send(self, ticket: _Ticket) -> None:
        if ticket.command is not None:
            self._write(ticket.command)
            ticket.command = None

    def _write(self, command: wire.Begin | wire.Leave) -> None:
        with suppress(OSError):  # it is ending, and who listens finds that out too
            if self._connection is not None:
                self._connection.send_bytes(wire.encode(command))

    def _start_thread(self, connection: Connection | None) -> None:
        self._closing = False
        self._thread = threading.Thread(target=self._keep, args=(connection,), name="introspect-engine", daemon=True)
        _begun.add(self)
        self._thread.start()

    def _keep(self, connection: Connection | None) -> None:
        """Keep a process at work until this engine is closed."""
        while not self._closing:
            try:
                if connection is None:
                    connection = self._begin_again()
            except IntrospectError as problem:
                self._end_process()
                if not self._closing:
                    logger.error("the engine's process does not start: %s", problem)
                    self._fail(problem)
                    with self._changed:
                        self._changed.wait_for(lambda: self._closing or bool(self._tickets))
                continue
            self._listen(connection)
            connection = None
            status = self._end_process()
            if not self._closing:
                logger.error("the engine's process ended by itself (status %s); another one begins", status)
                self.restarts += 1
                self._fail(EngineLostError(f"the engine's process ended (status {status})"), unsent=False)
        self._end_process()
        with self._changed:
            self._thread = None
            self._fail(EngineClosedError("the engine was closed"))

    def _begin_again(self) -> Connection:
        connection, ready = self._begin_process()
        if ready.facts != self._facts:
            raise EngineLostError("the model's files have changed since the service was started: start it again")
        return connection

    def _begin_process(self, launched: Launched | None = None) -> tuple[Connection, wire.Ready]:
        """A process that has loaded the model.

        Raises:
            IntrospectError: it has not.
        """
        with self._changed:
            self._launched = launched or launch()
            connection = Connection(os.dup(self._launched.connection.fileno()))
        try:
            connection.send_bytes(wire.encode(self._opening))
            answer = wire.read_answer(connection.recv_bytes())
        except (EOFError, OSError):
            status = self._end_process()
            raise EngineLostError(f"the engine's process ended while it loaded the model (status {status})") from None
        if isinstance(answer, wire.Ready):
            return connection, answer
        self._end_process()
        if isinstance(answer, wire.Refused):
            kind: type[IntrospectError] = getattr(errors, answer.kind, IntrospectError)
            raise kind(answer.message)
        raise EngineLostError(f"expected the engine's process to be ready, got {type(answer).__name__}")

    def _listen(self, connection: Connection) -> None:
        """Hand on what the process tells, until it ends."""
        with self._changed:
            self._connection = connection
            for ticket in self._tickets.values():
                self._send(ticket)
        with suppress(EOFError, OSError), connection:
            while True:
                told = wire.read_answer(connection.recv_bytes())
                if isinstance(told, wire.Told):
                    self._hand_on(told)

    def _hand_on(self, told: wire.Told) -> None:
        if told.status is not None:
            self._status = told.status
        for said in told.said:
            ticket = self._tickets.get(said.number)
            if ticket is None:
                continue
            if said.prompt is not None:
                ticket.prompt = wire.info_of(said.prompt)
            if said.finish_reason is not None:
                self._tickets.pop(said.number, None)
            ticket.sink(wire.step_of(said, cast("PromptInfo", ticket.prompt), self._facts))
        for lost in told.lost:
            ticket = self._tickets.pop(lost.number, None)
            if ticket is not None:
                ticket.sink(RequestError(lost.message) if lost.is_request else EngineLostError(lost.message))

    def _end_process(self) -> int | None:
        """Nothing is left of the process; its exit status."""
        with self._changed:
            launched = self._launched
            self._launched = self._connection = None
            self._status = wire.Status()
        return launched.end() if launched is not None else None

    def _fail(self, problem: Exception, *, unsent: bool = True) -> None:
        """End all answers; those that the process has not heard of only where `unsent`."""
        with self._changed:
            failed = {number: ticket for number, ticket in self._tickets.items() if unsent or ticket.command is None}
            for number in failed:
                del self._tickets[number]
        for ticket in failed.values():
            ticket.sink(copy(problem))  # each is raised by itself
