"""Begins the engine's process. Needs nothing but the standard library, so that a command can begin it before its own imports."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

_COMMAND = "import sys; from introspect_service.engine_worker import main; main(int(sys.argv[1]))"
_PATIENCE_SECONDS = 5.0
"""How long a process may take to end when nobody is at the other end any more."""


@dataclass(frozen=True, eq=False)
class Launched:
    """A process that waits to be told what to load (see `wire.Opening`), and our end of the connection to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def hang_up(self) -> None:
        """Both ends find that the other one is gone; the process ends then."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> int:
        """Nothing is left of it; its exit status."""
        self.hang_up()
        self.connection.close()
        try:
            return self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def launch() -> Launched:
    """Begin a process; it ends when the connection does, this process's death included."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603 - this very program
    return Launched(process, ours)
