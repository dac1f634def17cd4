"""A service in a process of its own, as `introspect serve` runs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from introspect_service.errors import ServiceError
from introspect_service.measure.client import Client

_START_SECONDS = 120.0
_COMMAND = "from introspect_service.cli import app; app(prog_name='introspect')"


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """A running service, stopped at the end of a `with` block.

    Args:
        options: options of `introspect serve`; the ports are chosen here.
        variables: further variables of its environment.
    """

    def __init__(self, *options: str, **variables: str) -> None:
        self.port = free_port()
        ports = ["--port", str(self.port)] + ([] if "--redis" in options else ["--redis-port", str(free_port())])
        environment = {**os.environ, "INTROSPECT_QUEUE_DEPTH": "64", **variables}
        self._process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-c", _COMMAND, "serve", *ports, *options], env=environment, stdout=subprocess.DEVNULL
        )
        self.model = ""
        self._has_engine = environment.get("INTROSPECT_ENGINE", "process") == "process"

    def __enter__(self) -> Self:
        """Wait until it listens.

        Raises:
            ServiceError: it does not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.model = str(Client(self.port, "").get("/v1/models")["data"][0]["id"])
                return self
            except OSError as problem:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    raise ServiceError("the service under test does not start") from problem
                time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def client(self) -> Client:
        """A client to it."""
        return Client(self.port, self.model)

    def memory_mb(self) -> float | None:
        """Memory of the service and its engine's process in MB; nothing where the system does not say."""
        if not Path("/proc/self/smaps_rollup").is_file():
            return None
        return round(sum(_memory_mb(number) for number in (self._process.pid, self.engine_id()) if number is not None), 1)

    def engine_id(self) -> int | None:
        """The engine's process, where it has one of its own.

        Raises:
            ServiceError: it should have one, and has none.
        """
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/children")  # of each thread: another one begins another process
        numbers = [number for thread in threads for number in thread.read_text().split()]
        engines = [int(number) for number in numbers if "engine_worker" in Path(f"/proc/{number}/cmdline").read_text()]
        if not engines and self._has_engine:
            raise ServiceError("expected the service under test to have a process for its engine, found none")
        return engines[0] if engines else None


def _memory_mb(number: int) -> float:
    """Proportional set size of a process: pages that it shares with others, such as those of libraries, count in part."""
    lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
