"""Runs the app on a port that is made sure of before anything is loaded."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from introspect_service.app import create_app
from introspect_service.backend import Backend
from introspect_service.events import STREAM_KEY
from introspect_service.logs import write_json_lines
from introspect_service.process_memory import settle
from introspect_service.reader import DEFAULT_URL
from introspect_service.settings import Settings, without_password
from introspect_service.state import Service
from introspect_service.warm_up import warm_up

GRACE_SECONDS = 5
"""How long connections may take to close when the last answer has ended."""

_POLL_SECONDS = 0.02

SAMPLE_IMAGE = "samples/scene-1.png"
SAMPLE_QUESTION = "what digit is at row 2 column 3 ?"


class AnnouncingServer(uvicorn.Server):
    """A server that says when it listens, and drains when it is told to stop.

    Args:
        config: of uvicorn.
        announce: is called when it listens.
        service: gives the running service.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], service: Callable[[], Service]) -> None:
        super().__init__(config)
        self._announce, self._service = announce, service
        self._warming: asyncio.Task[int] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was taken, while new requests get a 503; then end the event streams, which would go on for ever, and stop.

        A second Ctrl-C ends the waiting.
        """
        service = self._service()
        service.draining.set()
        end = time.monotonic() + service.settings.drain_seconds
        while service.runner.running + service.runner.waiting and time.monotonic() < end and not self.force_exit:  # noqa: ASYNC110 - counted by threads
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.to_thread(service.runner.close)  # what still runs is told that the server stops
        await asyncio.to_thread(service.backend.engine.close)  # not left to the process's own end, which a signal may bring at once
        service.viewers.stopping.set()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so; the model is warmed up behind that."""
        await super().startup(sockets)
        settle()
        if self.started:
            self._announce()
            service = self._service()
            self._warming = asyncio.create_task(asyncio.to_thread(warm_up, service.backend, service.draining.is_set))


def serve(settings: Settings, backend: Backend, bound: socket.socket, announce: Callable[[], None], log_level: str = "warning") -> bool:
    """Serve until told to stop; whether it ever listened."""
    app = create_app(settings, backend)
    log_config: dict[str, Any] | None = uvicorn.config.LOGGING_CONFIG
    if settings.log_format == "json":
        write_json_lines()
        log_config = None  # uvicorn's own lines go the same way
    config = uvicorn.Config(
        app,
        log_level=log_level,
        log_config=log_config,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=settings.max_connections,
        server_header=False,
    )
    server = AnnouncingServer(config, announce, lambda: app.state.service)
    server.run([bound])
    return server.started


def greeting(settings: Settings, backend: Backend, port: int) -> str:
    """What a service says when it listens: its address, a question to try, and where the signals go."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    probes = backend.scorer.name or "none (uncalibrated scores only)"
    stream = f"{without_password(settings.redis_url)}  key {STREAM_KEY}" if settings.redis_url else "off"
    lines = [f"service  {url}", f"model    {backend.model.name}", f"probes   {probes}", f"stream   {stream}"]
    lines += ["", "open that address in a browser, or ask from the repository's folder:", ""]
    lines += [sample_curl(url, backend.model.name, with_key=bool(settings.keys))]
    if settings.redis_url:
        is_default = settings.redis_url == DEFAULT_URL
        watch = ".venv/bin/introspect watch" if is_default else f".venv/bin/introspect watch --redis {without_password(settings.redis_url)}"
        lines += ["", f"and see its signals arrive, from another terminal:  {watch}"]
    return "\n".join(lines)


def sample_curl(url: str, model: str, *, with_key: bool = False) -> str:
    """A question as a shell command that works as printed, but for a key where one is needed."""
    key = "-H 'Authorization: Bearer YOUR-KEY' " if with_key else ""
    image = f"$(base64 < {SAMPLE_IMAGE} | tr -d '\\n')"
    return f"""curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' {key}-d @- <<EOF
{{"model": "{model}", "introspection": true, "messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{image}"}}}},
  {{"type": "text", "text": "{SAMPLE_QUESTION}"}}]}}]}}
EOF"""
