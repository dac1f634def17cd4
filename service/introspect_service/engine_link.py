"""One engine's process as the service sees it: what is sent never blocks who sends it, and what comes is read by one thread."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from introspect import errors
from introspect.errors import IntrospectError
from introspect_service import wire
from introspect_service.launching import Launched


class EngineLostError(IntrospectError):
    """The engine's process ended, or failed, before the answer was complete."""


class Link:
    """The connection to a process that was launched.

    Args:
        launched: the process; it belongs to this object.
    """

    def __init__(self, launched: Launched) -> None:
        self._launched = launched
        self._connection = Connection(os.dup(launched.connection.fileno()))
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="introspect-engine-commands", daemon=True)
        self._writer.start()

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._launched.process.pid

    def open(self, opening: wire.Opening) -> wire.Ready:
        """Have it load a model, and wait until it has.

        Raises:
            IntrospectError: it has not; the error that it had, where it could tell.
        """
        self.send(wire.encode(opening))
        try:
            answer = wire.read_answer(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise EngineLostError("the engine's process ended while it loaded the model") from None
        if isinstance(answer, wire.Ready):
            return answer
        if isinstance(answer, wire.Refused):
            kind: type[IntrospectError] = getattr(errors, answer.kind, IntrospectError)
            raise kind(answer.message)
        raise EngineLostError(f"expected the engine's process to be ready, got {type(answer).__name__}")

    def send(self, message: bytes) -> None:
        """Have a message written; returns at once. Nothing happens where the process has ended."""
        self._outbox.put(message)

    def told(self) -> Iterator[wire.Told]:
        """What the process tells, until it ends.

        Raises:
            msgspec.DecodeError: it tells something else.
        """
        with suppress(EOFError, OSError):
            while True:
                answer = wire.read_answer(self._connection.recv_bytes())
                if isinstance(answer, wire.Told):
                    yield answer

    def hang_up(self) -> None:
        """Let the process end, and `told` with it."""
        self._launched.hang_up()

    def end(self) -> int:
        """Nothing is left of the process and the connection; its exit status."""
        self.hang_up()  # who writes finds that nobody reads, a process that stands still included
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        return self._launched.end()

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            with suppress(OSError):  # it has ended, which who reads finds out
                self._connection.send_bytes(message)
