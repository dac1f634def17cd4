"""The engine's process: one thread that decodes, and one that hears what comes. It ends with the service that began it."""

from __future__ import annotations

import logging
import os
import queue
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
from introspect.prompt import EncodedPrompt
from introspect.scheduler import Event
from introspect.types import StepTrace
from introspect_service import wire
from introspect_service.logs import write_json_lines
from introspect_service.process_memory import bound_arenas, settle
from introspect_service.threads import use_threads

logger = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    """Load what the other end of the connection names, and answer until it is closed."""
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    try:
        opening = wire.read_opening(connection.recv_bytes())
    except (EOFError, OSError):  # there is nothing to load
        return
    bound_arenas()
    transformers_logging.disable_progress_bar()
    if opening.json_logs:
        write_json_lines()
    commands = Commands(connection)
    with suppress(ConnectionError):  # nobody is left to tell
        try:
            loaded = load_model(opening.model, device=opening.device, heads=Path(opening.heads) if opening.heads else None)
        except IntrospectError as problem:
            connection.send_bytes(wire.encode(wire.Refused(type(problem).__name__, str(problem))))
            return
        use_threads(loaded, opening.threads)
        worker = Worker(connection, Engine(loaded, max_batch=opening.max_batch), commands)
        connection.send_bytes(wire.encode(wire.Ready(facts_of(loaded), torch.get_num_threads())))
        commands.is_loading = False
        settle()
        try:
            worker.run()
        except ConnectionError:
            raise
        except Exception:
            logger.exception("the engine failed")
            sys.exit(1)


Command = tuple[int, EncodedPrompt | Exception] | wire.Leave | None
"""A number and its prompt, or why it is none; an answer to leave; or nothing, where there will be no more."""


class Commands:
    """What the service says, heard by a thread of its own: the one that decodes only looks whether something is there.

    Attributes:
        is_loading: nothing is lost where the process ends at once, should the service be gone.

    Args:
        connection: to the service.
    """

    def __init__(self, connection: Connection) -> None:
        self.is_loading = True
        self._connection = connection
        self._heard: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._hear, name="introspect-commands", daemon=True).start()

    @property
    def is_empty(self) -> bool:
        """Whether the next one is still to come."""
        return self._heard.empty()

    def next(self) -> Command:
        """The next one; waits for it."""
        return self._heard.get()

    def _hear(self) -> None:
        try:
            while True:
                command = wire.read_command(self._connection.recv_bytes())
                self._heard.put(_prompt(command) if isinstance(command, wire.Begin) else command)
        except (EOFError, OSError):
            pass
        except Exception:  # what follows is not to be understood either
            logger.exception("expected a command from the service")
        if self.is_loading:
            os._exit(1)
        self._heard.put(None)


def _prompt(command: wire.Begin) -> tuple[int, EncodedPrompt | Exception]:
    try:
        return command.number, wire.prompt_of(command)
    except Exception as problem:  # noqa: BLE001 - it is this request's own
        return command.number, problem


class Worker:
    """Decodes what comes over a connection, until that is closed.

    An engine that fails ends the process: what is left of it may be of no use any more (a device after an error),
    and the service begins another.

    Args:
        connection: to the service.
        engine: the model and its limits.
        commands: what comes over the connection.
    """

    def __init__(self, connection: Connection, engine: Engine, commands: Commands) -> None:
        self._connection, self._scheduler, self._commands = connection, engine.scheduler(), commands
        self._device = engine.loaded.device
        self._answers: dict[int, Answer] = {}
        self._numbers: dict[Answer, int] = {}
        self._begun: set[int] = set()
        self._status, self._counts = wire.Status(), (0, 0)

    def run(self) -> None:
        """Until the other end closes the connection, or is gone."""
        while self._take():
            self._tell(self._scheduler.step())

    def _take(self) -> bool:
        """Do what was said, and wait where there is no work; False when nobody will say more."""
        while not (self._scheduler.has_work and self._commands.is_empty):
            if self._commands.is_empty:
                self._tell([])
            match self._commands.next():
                case None:
                    return False
                case wire.Leave(number):
                    if (answer := self._answers.pop(number, None)) is not None:
                        self._forget(answer)
                        self._scheduler.cancel(answer)
                case (number, prompt):
                    self._begin(number, prompt)
        return True

    def _begin(self, number: int, prompt: EncodedPrompt | Exception) -> None:
        try:
            if isinstance(prompt, Exception):
                raise prompt
            answer = self._scheduler.submit(prompt)
        except Exception as problem:  # noqa: BLE001 - it is this request's own
            self._send([], [_lost(number, problem)])
            return
        self._answers[number] = answer
        self._numbers[answer] = number

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
                self._check_device(event)
                lost.append(_lost(number, event))
            if isinstance(event, Exception) or event.finish_reason is not None:
                self._forget(answer)
        self._send(said, lost)

    def _check_device(self, problem: Exception) -> None:
        """Raise where a device is of no use any more: after some errors each of its operations fails, until the process ends."""
        if self._device.type == "cuda" and not isinstance(problem, RequestError | torch.OutOfMemoryError):
            torch.cuda.synchronize(self._device)

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
