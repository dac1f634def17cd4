"""Who has no key or asks too often is turned away, whatever way the path is written; everybody else is let through."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from pydantic import SecretStr, ValidationError

from introspect_service.admission import MOST_CALLERS, RateLimit
from introspect_service.settings import Settings

KEYS = ("a-key-of-sixteen-characters", "another-key-of-sixteen")


@pytest.fixture(scope="module")
def guarded(settings, backend, make):
    """A service that wants a key."""
    own = settings.model_copy(update={"port": make.free_port(), "redis": "off", "api_keys": SecretStr(", ".join(KEYS))})
    with make.running(own, backend) as (url, _):
        yield url


def status_of(url, raw_path, headers=""):
    """The status of a request whose path is sent as it stands, which an HTTP client would tidy."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(f"GET {raw_path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}Connection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(guarded, settings, key, make):
    with openai.OpenAI(base_url=f"{guarded}/v1", api_key=key, max_retries=0) as client:
        assert client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]}x", f"Basic {KEYS[0]}", KEYS[0],
        f"Bearer {', '.join(KEYS)}", "Bearer \xff",
    ],
)  # fmt: skip
def test_nothing_else_does(guarded, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = httpx.get(f"{guarded}/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert not any(key in response.text for key in KEYS)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models", "//v1/models", "/page/../v1/models", "/v1/models;/page/", "/page/%2e%2e/v1/models", "/metrics", "/docs",
        "/openapi.json", "/v1/signals", "/v1/introspection/x/answer", "http://host/livez/../v1/models",
    ],
)  # fmt: skip
def test_no_way_to_write_a_path_passes_the_guard(guarded, path):
    assert status_of(guarded, path) in (401, 404)  # 404: a page file that is not there, which needs no key


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/health", "/health/live", "/page/main.js"])
def test_health_and_the_page_need_no_key(guarded, path):
    assert httpx.get(guarded + path).status_code == 200


@pytest.mark.parametrize("keys", ["short", "a-key-of-sixteen-characters,short", "", "a-key-of-sixteen-characters,", "ümlaut-key-of-many"])
def test_keys_that_could_be_guessed_are_refused(keys):
    with pytest.raises(ValidationError, match="16"):
        Settings(api_keys=keys)


def test_keys_are_not_shown():
    settings = Settings(api_keys=KEYS[0])
    assert KEYS[0] not in repr(settings)
    assert KEYS[0] not in settings.model_dump_json()


def test_a_bucket_holds_a_minute_s_worth_and_fills_evenly():
    now = 0.0
    limit = RateLimit(None, 30, lambda _: None, clock=lambda: now)
    assert [limit.take(b"one") for _ in range(31)] == [0] * 30 + [2]
    assert limit.take(b"two") == 0, "another caller has a bucket of his own"
    now = 1.9
    assert limit.take(b"one") == 1
    now = 2.0
    assert [limit.take(b"one"), limit.take(b"one")] == [0, 2]
    now = 1_000.0
    assert [limit.take(b"one") for _ in range(31)] == [0] * 30 + [2], "no more than a minute's worth is saved up"


def test_buckets_do_not_pile_up():
    limit = RateLimit(None, 1, lambda _: None, clock=lambda: 0.0)
    for number in range(MOST_CALLERS + 50):
        limit.take(str(number).encode())
    assert len(limit._buckets) == MOST_CALLERS


def test_who_asks_too_often_is_told_when_to_come_back(settings, backend, make):
    own = settings.model_copy(update={"port": make.free_port(), "redis": "off", "rate_limit": 2})
    body = {"model": own.model, "messages": make.messages(), "max_tokens": 1}
    with make.running(own, backend) as (url, _):
        begun, answers = time.monotonic(), list[httpx.Response]()
        while len(answers) < 20 and (not answers or answers[-1].status_code == 200):
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))
        refused, minutes = answers[-1], (time.monotonic() - begun) / 60
        assert refused.status_code == 429
        assert 3 <= len(answers) <= 3 + 2 * minutes, "two at once, and as many a minute"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 'introspect_admission_rejections_total{reason="rate_limit"} 1.0' in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/v1/models").status_code == 200, "reading is not limited"
