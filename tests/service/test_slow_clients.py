"""Clients that do not read, that send byte by byte, and that leave: their places are free again, and others notice nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from introspect_service.limits import SendLimit

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def impatient(settings, backend, make):
    """A service that waits one second for its clients, and answers one at a time: its address, port and parts."""
    changed = settings.model_copy(update={"client_seconds": 1.0, "max_batch": 1, "port": make.free_port()})
    with make.running(changed, backend) as (address, app):
        yield address, changed.port, app.state.service


def connect(port, *, buffer=None):
    """A connection; with `buffer`, one that takes in hardly anything."""
    made = socket.socket()
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(30)
    made.connect(("127.0.0.1", port))
    return made


def request_of(backend, **options):
    """The bytes of a request."""
    body = json.dumps({"model": backend.model.name, "messages": [{"role": "user", "content": "hello"}], **options}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answered(address, backend):
    """Whether somebody else is answered as always."""
    body = {"model": backend.model.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()["usage"]["completion_tokens"] == 3


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def rest_of(connection):
    """What comes until the server closes."""
    read = b""
    while piece := connection.recv(65_536):
        read += piece
    return read


def test_a_client_that_never_reads_holds_no_place(impatient, backend):
    address, port, service = impatient
    with connect(port, buffer=2_048) as connection:
        connection.sendall(request_of(backend, max_tokens=200, stream=True, logprobs=True, top_logprobs=20, introspection=True))
        wait_for(lambda: service.runner.running == 1)
        wait_for(lambda: service.runner.running == 0)
        assert answered(address, backend)


def test_what_a_client_does_not_read_is_given_up(make, caplog):
    sent = []

    async def endless(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(10_000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            sent.append(number)

    port = make.free_port()
    server = uvicorn.Server(uvicorn.Config(SendLimit(endless, seconds=0.5), port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        with connect(port, buffer=2_048) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for(lambda: "a client did not read for 0.5 s" in caplog.text)
            assert len(sent) < 1_000  # what the two sockets take in, and no more
            while connection.recv(1_000_000):  # the connection ends, and with it what waited
                pass
    finally:
        server.should_exit = True
        thread.join(20)


async def test_a_client_that_reads_slowly_but_steadily_is_served():
    async def app(_scope, _receive, send):
        for _ in range(4):
            await send({"type": "http.response.body", "more_body": True})

    async def slow(_):
        await asyncio.sleep(0.1)
        heard.append(1)

    heard = []
    await SendLimit(app, seconds=0.3)({"type": "http"}, None, slow)
    assert len(heard) == 4


def test_a_body_sent_byte_by_byte_is_refused_in_time(impatient, backend):
    address, port, service = impatient
    with connect(port) as connection:
        whole = request_of(backend)
        head, body = whole[: whole.index(b"\r\n\r\n") + 4], whole[whole.index(b"\r\n\r\n") + 4 :]
        connection.sendall(head)
        for byte in body[:8]:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
        assert answered(address, backend)
        said = rest_of(connection)
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_timeout"' in said
    assert service.runner.running == service.runner.waiting == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_mid_answer_frees_its_place(impatient, backend, stream):
    address, port, service = impatient
    with connect(port) as connection:
        connection.sendall(request_of(backend, max_tokens=800, stream=stream))
        wait_for(lambda: service.runner.running == 1)
    wait_for(lambda: service.runner.running == 0)
    assert answered(address, backend)
    assert backend.engine.kv_bytes.allocated == 0
