"""Answers of several clients are made together, and none says anything else than alone."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest

from introspect_service.settings import Settings


@pytest.fixture
def wide(backend, make):
    """A service that answers three at once."""
    settings = Settings(model=backend.model.name, redis="off", port=make.free_port(), max_batch=3, max_tokens=800)
    with make.running(settings, backend) as (address, app):
        yield address, app.state.service.runner


def wait_for(condition):
    """Wait until something holds."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def body_of(backend, text, **options):
    return {"model": backend.model.name, "messages": [{"role": "user", "content": text}], "stream": True, **options}


def read(address, body, name, order):
    """The text of a streamed answer; notes who got each chunk."""
    text = ""
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if said := choice["delta"].get("content"):
                        text += said
                        order.append(name)
    return text


def test_two_streams_interleave_and_say_what_they_say_alone(wide, backend):
    address, _ = wide
    questions = ("where does miro live ?", "how many red ?")
    alone = [read(address, body_of(backend, question, max_tokens=60), 0, []) for question in questions]
    order, texts = [], {}

    def ask(number):
        texts[number] = read(address, body_of(backend, questions[number], max_tokens=60), number, order)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[0], texts[1]] == alone
    begun, ended = max(order.index(0), order.index(1)), len(order) - max(order[::-1].index(0), order[::-1].index(1))
    assert {0, 1} <= set(order[begun:ended])  # after both had begun and before one had ended


def test_running_and_waiting_are_counted_and_places_are_free_once_clients_leave(wide, backend):
    address, runner = wide
    body = body_of(backend, "hello", max_tokens=790)
    clients = [httpx.Client(timeout=60) for _ in range(3)]
    responses = [one.send(one.build_request("POST", f"{address}/v1/chat/completions", json=body), stream=True) for one in clients]
    lines = [response.iter_lines() for response in responses]
    for one in lines:
        next(one)
    wait_for(lambda: (runner.running, runner.waiting) == (3, 0))
    late = threading.Thread(target=read, args=(address, body_of(backend, "hello", max_tokens=2), 0, []))
    late.start()
    wait_for(lambda: runner.waiting == 1)
    metrics = dict(line.rsplit(" ", 1) for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#"))
    assert float(metrics["introspect_num_requests_running"]) == 3
    assert float(metrics["introspect_num_requests_waiting"]) == 1
    for response, client in zip(responses, clients, strict=True):
        response.close()
        client.close()
    late.join(60)
    wait_for(lambda: (runner.running, runner.waiting) == (0, 0))
    wait_for(lambda: backend.engine.kv_bytes.allocated == 0)
