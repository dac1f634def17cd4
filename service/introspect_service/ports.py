"""Ports: whether one is free, and how to take it before anything slow is done."""

from __future__ import annotations

import socket

from introspect_service.errors import PortInUseError


def _socket_for(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `host` and `port` now."""
    with _socket_for(host) as probe:
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
    return True


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; 0 lets the system choose. Who connects waits until it is served.

    Raises:
        PortInUseError: the port is taken, or the address is not this machine's.
    """
    bound = _socket_for(host)
    try:
        bound.bind((host, port))
        bound.listen()  # bound alone, it could be bound again by another
    except OSError as problem:
        bound.close()
        raise PortInUseError(
            f"cannot listen on {host} port {port} ({problem.strerror or problem}): stop what is there, or choose another port with --port"
        ) from problem
    return bound
