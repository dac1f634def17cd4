"""Remote pictures through the service: one that is fetched says what the same one says when it is sent, and by default none is fetched."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import httpx
import openai
import pytest
from picture_server import NAME, PNG, fetcher, listening

from introspect_service.settings import Settings


@pytest.fixture
def server(make):
    with listening() as made:
        made.png = make.encoded(make.picture(8, 8))
        made.routes["/a.png"] = (200, {"Content-Type": "image/png"}, made.png)
        yield made


def post(url, model, *urls):
    parts = [{"type": "image_url", "image_url": {"url": each}} for each in urls]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "how many red ?"}]}],
        "max_tokens": 2,
    }
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
def served(settings, backend, server, make):
    """A service that fetches from the test's server, for which alone the loopback is public."""
    own = settings.model_copy(update={"port": make.free_port(), "redis": "off"})
    with make.running(own, backend) as (url, app):
        app.state.service = replace(app.state.service, remote_images=fetcher(server, max_bytes=own.max_image_bytes, total_bytes=400_000))
        yield url


def test_end_to_end_a_fetched_picture_says_what_the_same_picture_sent_says(served, settings, server, make):
    server.routes["/b.png"] = (200, PNG, make.encoded(make.picture(seed=3)))
    chat = make.messages(uri=f"http://{NAME}:{server.port}/b.png")
    with openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0) as client:
        got, sent = (
            client.chat.completions.create(model=settings.model, messages=each, max_tokens=4, logprobs=True)
            for each in (chat, make.messages(uri=make.data_uri(server.routes["/b.png"][2])))
        )
    assert got.choices[0].logprobs == sent.choices[0].logprobs
    # One that is fetched and one that is sent share a request.
    mixed = post(served, settings.model, f"http://{NAME}:{server.port}/a.png", make.data_uri(make.encoded(make.picture(8, 8))))
    assert mixed.status_code == 200


def bomb(width, height):
    """A PNG that claims a size and holds hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_end_to_end_the_picture_at_fault_is_named_and_a_bomb_is_not_decoded(served, settings, server):
    server.routes["/bomb.png"] = (200, PNG, bomb(50_000, 50_000))
    server.routes["/text.png"] = (200, PNG, b"secret of another server")
    for name, says in (("bomb", "pixels"), ("text", "cannot be read as png")):
        response = post(served, settings.model, f"http://{NAME}:{server.port}/a.png", f"http://{NAME}:{server.port}/{name}.png")
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_image", "messages.0.content.1.image_url.url")
        assert says in error["message"]
        assert "secret" not in response.text
    too_many = [f"http://{NAME}:{server.port}/a.png"] * 3
    server.asked.clear()
    assert post(served, settings.model, *too_many).json()["error"]["code"] == "limit_exceeded"
    assert server.asked == [], "counted before anything is fetched"


def test_as_it_is_served_a_host_that_is_not_public_is_refused_even_where_it_is_listed(settings, backend, server, make):
    own = settings.model_copy(
        update={"port": make.free_port(), "redis": "off", "remote_image_hosts": f"localhost:{server.port}", "remote_image_http": True}
    )
    with make.running(own, backend) as (url, _):
        error = post(url, settings.model, f"http://localhost:{server.port}/a.png").json()["error"]
        assert "no public address" in error["message"]
        assert "not fetched from this host" in post(url, settings.model, f"http://127.0.0.1:{server.port}/a.png").json()["error"]["message"]
    assert server.asked == []


def test_by_default_nothing_is_fetched(url, settings, server):
    error = post(url, settings.model, f"http://localhost:{server.port}/a.png").json()["error"]
    assert "Remote pictures are not fetched" in error["message"]
    assert server.asked == []


@pytest.mark.parametrize(
    "hosts",
    ["", "https://images.example.org", "a.example, ", "*.example.org", "a/b", "user@host", "host:x", "-a.example", "a b", "bücher.example"],
)
def test_hosts_that_are_no_names_are_refused_at_start(hosts):
    with pytest.raises(ValueError, match=r"images\.example\.org"):
        Settings(remote_image_hosts=hosts)


def test_hosts_are_listed_by_commas_in_any_case():
    assert Settings(remote_image_hosts="Images.Example.org, b.example:8443").image_hosts == ("images.example.org", "b.example:8443")
