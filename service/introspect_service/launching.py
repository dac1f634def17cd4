"""Begins the engine's process. Needs nothing but the standard library, so that a command can begin it before its own imports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

_COMMAND = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):  # meant for the service, which finishes its answers first
    signal.signal(number, signal.SIG_IGN)
from introspect_service.engine_worker import main
main(int(sys.argv[1]))
"""
_NOT_FOR_IT = ("INTROSPECT_API_KEYS", "INTROSPECT_ADMIN_KEY", "INTROSPECT_REDIS")
_PATIENCE_SECONDS = 2.0
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
        """Nothing is left of it, whatever it is at; its exit status."""
        self.hang_up()
        self.connection.close()
        try:
            return self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def launch() -> Launched:
    """Begin a process; it ends when the connection does, this process's death included.

    Raises:
        OSError: there is no room for another process.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno())]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
    try:
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)  # noqa: S603 - this very program
    except OSError:
        ours.close()
        raise
    return Launched(process, ours)
