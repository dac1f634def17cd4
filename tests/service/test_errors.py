"""Whatever is wrong with a request, the answer is OpenAI's error object with the right status, naming the field."""

from __future__ import annotations

import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest

from introspect_service.settings import Settings


@pytest.fixture
def post(url):
    """Posts a chat request; `content` sends raw bytes instead."""

    def send(body=None, content=None, **options):
        return httpx.post(f"{url}/v1/chat/completions", json=body, content=content, timeout=30, **options)

    return send


def check(response, status, *, param=None, code=None, says=""):
    """The response is an error object with just OpenAI's keys."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["param"] == param
    assert code is None or error["code"] == code
    assert says in error["message"]


WRONG_FIELDS = [
    ({"model": None}, "model", "string"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hello"}, "messages", "list"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "developer"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages.0.content.0.text", "string"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0", "image_url"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0.image_url.url",
        "required",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content.0.text", "Unicode"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "segment": "image"}]}]},
        "messages.0.content.0.segment",
        "context",
    ),
    ({"n": 0}, "n", "1"),
    ({"n": 9}, "n", "8"),
    ({"n": 10**9}, "n", "8"),
    ({"n": 1.5}, "n", "integer"),
    ({"temperature": 2.5}, "temperature", "2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "greater"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"max_tokens": 801}, "max_tokens", "800"),
    ({"max_completion_tokens": 801}, "max_completion_tokens", "800"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "4"),
    ({"stop": ""}, "stop.0", "1 character"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"introspection": "yes"}, "introspection", "dictionary"),
    ({"introspection": {"signal": []}}, "introspection.signal", "not permitted"),
    ({"introspection": {"signals": ["mood"]}}, "introspection.signals.0", "confidence"),
    ({"introspection": {"kv_budget": "many"}}, "introspection.kv_budget", "25%"),
    ({"introspection": {"kv_budget": "0%"}}, "introspection.kv_budget", "25%"),
    ({"introspection": {"kv_budget": "64", "policy": "full"}}, "introspection", "keeps the whole cache"),
    ({"introspection": {"policy": "snapkv"}}, "introspection", "give a kv_budget"),
]


@pytest.mark.parametrize(("change", "param", "says"), WRONG_FIELDS, ids=[json.dumps(change)[:60] for change, _, _ in WRONG_FIELDS])
def test_a_wrong_field_is_named(post, settings, change, param, says):
    body = {"model": settings.model, "messages": [{"role": "user", "content": "is there a 7 ?"}]} | change
    check(post(content=json.dumps(body), headers={"Content-Type": "application/json"}), 400, param=param, says=says)


@pytest.mark.parametrize(
    "neutral", [{"tools": []}, {"n": 1}, {"response_format": {"type": "text"}}, {"frequency_penalty": 0}, {"user": "me"}, {"stop": None}]
)
def test_fields_that_ask_for_nothing_are_taken(post, settings, neutral):
    body = {"model": settings.model, "messages": [{"role": "user", "content": "is there a 7 ?"}], "max_tokens": 1} | neutral
    assert post(body).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"x"', "application/json"),
        (b"", "application/json"),
        (b'{"a": 1}', "text/plain"),
        (b"[" * 100_000, "application/json"),
        (b"\xff\xfe", "application/json"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(post, content, kind):
    check(post(content=content, headers={"Content-Type": kind}), 400)


def test_messages_that_the_model_cannot_take_are_refused_before_anything_is_streamed(post, settings):
    body = {"model": settings.model, "stream": True, "messages": [{"role": "assistant", "content": "hello"}]}
    check(post(body), 400, code="invalid_request", says="user")
    body["messages"] = [{"role": "user", "content": "7 " * 250}]
    body["max_tokens"] = 800
    check(post(body), 400, code="invalid_request", says="context")


def test_an_unknown_policy_is_refused(post, settings):
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": "hello"}],
        "introspection": {"kv_budget": 8, "policy": "best"},
    }
    check(post(body), 400, code="invalid_request", says="snapkv")


def test_limits_on_what_a_request_holds(post, settings, make):
    text = {"role": "user", "content": "hello"}
    check(post({"model": settings.model, "messages": [text] * 5}), 400, param="messages", code="limit_exceeded", says="4")
    check(post({"model": settings.model, "messages": [{"role": "user", "content": "x" * 501}]}), 400, param="messages", says="500")
    part = {"type": "image_url", "image_url": {"url": make.data_uri(make.encoded(make.picture(8, 8)))}}
    check(post({"model": settings.model, "messages": [{"role": "user", "content": [part] * 3}]}), 400, param="messages", says="2")
    tiny = {"type": "image_url", "image_url": {"url": "data:,"}}
    check(post({"model": settings.model, "messages": [{"role": "user", "content": [tiny] * 5_000}]}), 400, param="messages", says="2")
    # Each picture is within the limit, both together are not.
    part = {"type": "image_url", "image_url": {"url": make.data_uri(make.encoded(make.picture(150, 150), "JPEG"), "jpeg")}}
    body = {"model": settings.model, "messages": [{"role": "user", "content": [part, part]}]}
    check(post(body), 400, param="messages.0.content.1.image_url.url", code="invalid_image", says="17500")


def test_a_bad_picture_is_named_and_nothing_of_it_is_repeated(post, settings, make):
    secret = "c2VjcmV0" * 8
    body = {"model": settings.model, "messages": make.messages(uri=f"data:image/png;base64,{secret}")}
    response = post(body)
    check(response, 400, param="messages.0.content.0.image_url.url", code="invalid_image")
    assert secret not in response.text


def test_an_unknown_model_is_404(post, url):
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    check(post(body), 404, param="model", code="model_not_found", says="gpt-4o")
    check(httpx.get(f"{url}/v1/models/some/other"), 404, param="model", code="model_not_found")


def test_an_unknown_route_is_404_and_a_wrong_method_405(url):
    check(httpx.get(f"{url}/v2/chat"), 404, code="not_found")
    check(httpx.get(f"{url}//v1/models"), 404, code="not_found")
    response = httpx.get(f"{url}/v1/chat/completions")
    check(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_body_over_the_limit_is_413(post, settings):
    check(post(content=b" " * (settings.max_body_bytes + 1), headers={"Content-Type": "application/json"}), 413, code="request_too_large")


def test_a_chunked_body_over_the_limit_is_413(post, settings):
    pieces = (b" " * 10_000 for _ in range(settings.max_body_bytes // 10_000 + 1))
    check(post(content=pieces, headers={"Content-Type": "application/json"}), 413, code="request_too_large")


def test_a_body_within_the_limit_is_read_to_its_end(post, settings):
    check(post(content=b" " * (settings.max_body_bytes - 1) + b"{", headers={"Content-Type": "application/json"}), 400, code="invalid_json")


def test_a_declared_length_far_over_the_limit_is_refused_without_reading(url):
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


class Gate:
    """A real engine that waits before each request, or fails instead of running it."""

    def __init__(self, engine):
        self.engine, self.open, self.entered, self.problem = engine, threading.Event(), threading.Event(), None

    def follow(self, request, sink):
        self.entered.set()
        self.open.wait(20)
        if self.problem is not None:
            raise self.problem
        return self.engine.follow(request, sink)


@pytest.fixture
def gated(backend, make):
    """A service whose engine waits to be let on, with room for one waiting request."""
    from dataclasses import replace

    gate = Gate(backend.engine)
    settings = Settings(model=backend.model.name, redis="off", port=make.free_port(), queue_depth=1, max_batch=1)
    with make.running(settings, replace(backend, engine=gate)) as (address, app):
        yield address, gate, app.state.service.runner
        gate.open.set()


def test_a_full_queue_is_503_with_a_time_to_come_back(gated, backend):
    address, gate, runner = gated
    body = {"model": backend.model.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    answers = []

    def ask():
        answers.append(httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).status_code)

    waiting = [threading.Thread(target=ask) for _ in range(2)]
    for thread in waiting:
        thread.start()
    gate.entered.wait(10)
    while runner.waiting < 1:
        pass
    refused = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    check(refused, 503, code="queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    gate.open.set()
    for thread in waiting:
        thread.join(30)
    assert answers == [200, 200]
    assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_server_is_500_tells_nothing_and_ends_nothing(gated, backend, stream, caplog):
    address, gate, runner = gated
    body = {"model": backend.model.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "stream": stream}
    gate.open.set()
    gate.problem = RuntimeError("secret at 0x7f00")
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    check(response, 500, code="internal_error")
    assert "secret" not in response.text
    assert "secret" in caplog.text
    gate.problem = None
    assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).status_code == 200
    assert runner.alive
