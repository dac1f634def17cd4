"""The engine's process: one thread that decodes, and one that hears what comes. It ends with the service that began it."""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from introspect.answer import Answer
from introspect.engine import Engine
from introspect.errors import IntrospectError, RequestError
from introspect.loading import load_model
from introspect.outline import facts_of
from introspect.scheduler import Event
from introspect.types import StepTrace
from introspect_service import wire
from introspect_service.logs import write_json_lines
from introspect_service.process_memory import bound_arenas, settle
from introspect_service.threads import use_threads

logger = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    """Load what the other end of the connection names, and answer until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the service, which finishes its answers first
    connection = Connection(descriptor)
    try:
        opening = wire.read_opening(connection.recv_bytes())
    except EOFError:  # there is nothing to load
        return
    bound_arenas()
    transformers_logging.disable_progress_bar()
    if opening.json_logs:
        write_json_lines()
    try:
        loaded = load_model(opening.model, device=opening.device, heads=Path(opening.heads) if opening.heads else None)
    except IntrospectError as problem:
        connection.send_bytes(wire.encode(wire.Refused(type(problem).__name__, str(problem))))
        return
    use_threads(loaded, opening.threads)
    engine = Engine(loaded, max_batch=opening.max_batch)
    connection.send_bytes(wire.encode(wire.Ready(facts_of(loaded), torch.get_num_threads())))
    settle()
    try:
        Worker(connection, engine).run()
    except Exception:
        logger.exception("the engine failed")
        sys.exit(1)


class Worker:
    """Decodes what comes over a connection, until that is closed.

    An engine that fails ends the process: what is left of it may be of no use any more (a device after an error),
    and the service begins another.

    Args:
        connection: to the service.
        engine: the model and its limits.
    """

    def __init__(self, connection: Connection, engine: Engine) -> None:
        self._connection, self._scheduler = connection, engine.scheduler()
        self._commands: queue.SimpleQueue[wire.Begin | wire.Leave | None] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._numbers: dict[Answer, int] = {}
        self._begun: set[int] = set()
        self._status, self._counts = wire.Status(), (0, 0)

    def run(self) -> None:
        """Until the other end closes the connection, or is gone."""
        threading.Thread(target=self._hear, name="introspect-commands", daemon=True).start()
        with suppress(BrokenPipeError):  # nobody is left to tell
            while self._take():
                self._tell(self._scheduler.step())

    def _hear(self) -> None:
        """Read commands; reading is no work of the thread that decodes, which only looks whether one is there."""
        try:
            while True:
                self._commands.put(wire.read_command(self._connection.recv_bytes()))
        except (EOFError, OSError):
            self._commands.put(None)

    def _take(self) -> bool:
        """Do what was said, and wait where there is no work; False when nobody will say more."""
        while not (self._scheduler.has_work and self._commands.empty()):
            if self._commands.empty():
                self._tell([])
            match self._commands.get():
                case None:
                    return False
                case wire.Begin() as command:
                    self._begin(command)
                case wire.Leave(number):
                    if (answer := self._answers.pop(number, None)) is not None:
                        self._forget(answer)
                        self._scheduler.cancel(answer)
        return True

    def _begin(self, command: wire.Begin) -> None:
        try:
            answer = self._scheduler.submit(wire.prompt_of(command))
        except Exception as problem:  # noqa: BLE001 - it is this request's own
            self._send([], [_lost(command.number, problem)])
            return
        self._answers[command.number] = answer
        self._numbers[answer] = command.number

    def _forget(self, answer: Answer) -> None:
        number = self._numbers.pop(answer)
        self._answers.pop(number, None)
        self._begun.discard(number)

    def _tell(self, events: list[Event]) -> None:
        said, lost = list[wire.Said](), list[wire.Lost]()
        for answer, event in events:
            number = self._numbers[answer]
            if isinstance(event, StepTrace):
                said.append(wire.said(number, event, is_first=number not in self._begun))
                self._begun.add(number)
            else:
                lost.append(_lost(number, event))
            if isinstance(event, Exception) or event.finish_reason is not None:
                self._forget(answer)
        self._send(said, lost)

    def _send(self, said: list[wire.Said], lost: list[wire.Lost]) -> None:
        status = self._new_status()
        if said or lost or status is not None:
            self._connection.send_bytes(wire.encode(wire.Told(said, lost, status)))

    def _new_status(self) -> wire.Status | None:
        """What has changed; lengths are not read from the device while nothing does."""
        counts = (self._scheduler.running, self._scheduler.decoding)
        if counts == self._counts:
            return None
        self._counts, memory = counts, self._scheduler.kv_bytes
        return wire.Status(*counts, memory.allocated, memory.owned, memory.filled)


def _lost(number: int, problem: Exception) -> wire.Lost:
    is_request = isinstance(problem, RequestError)
    return wire.Lost(number, str(problem) if is_request else f"{type(problem).__name__}: {problem}", is_request)


if __name__ == "__main__":
    main(int(sys.argv[1]))
