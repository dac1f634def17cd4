"""Pictures from other servers: what an operator allows is fetched, and no address, name, redirect or body leads anywhere else."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import struct
import threading
import zlib
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest
import trustme

from introspect_service.errors import ImageError
from introspect_service.remote_images import MOST_REDIRECTS, RemoteImages, is_public
from introspect_service.settings import Settings

NAME = "pictures.test"


class Pictures(BaseHTTPRequestHandler):
    """Serves what its server's `routes` say: a status, headers and a body, or a function that writes the answer."""

    def do_GET(self):
        self.server.asked.append((self.client_address, self.headers, self.path))
        route = self.server.routes[self.path]
        if callable(route):
            route(self)
            return
        status, headers, body = route
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing is written to the terminal."""


class Server(ThreadingHTTPServer):
    """A real server on the loopback."""

    daemon_threads = True

    def __init__(self, tls=None):
        super().__init__(("127.0.0.1", 0), Pictures)
        self.routes, self.asked, self.stopped = {}, [], threading.Event()
        self.port = self.server_address[1]
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_):
        """A client that goes away is what is tested."""


@contextmanager
def listening(tls=None):
    server = Server(tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture
def server(make):
    with listening() as made:
        made.png = make.encoded(make.picture(8, 8))
        made.routes["/a.png"] = (200, {"Content-Type": "image/png"}, made.png)
        yield made


def names(**known):
    """A resolver of the names that are given, with underscores for dots; each answer of a list is given once."""
    asked = []

    async def resolve(host, _):
        asked.append(host)
        found = known[host.replace(".", "_")]
        return found.pop(0) if isinstance(found[0], list) else found

    resolve.asked = asked
    return resolve


def fetcher(server, resolve=None, **options):
    """A fetcher that may ask the test's server by its name, and for which the loopback is public; everything else is as served."""
    given = {
        "hosts": [f"{NAME}:{server.port}"], "max_bytes": 10_000, "total_bytes": 15_000, "seconds": 20, "allow_http": True,
        "resolve": resolve or names(pictures_test=["127.0.0.1"]),
        "is_allowed": lambda address: address == "127.0.0.1" or is_public(address),
    }  # fmt: skip
    return RemoteImages(**(given | options))


def fetch(images, *urls):
    return asyncio.run(images.fetch_all(urls))


def refused(images, url):
    """Why the picture is not taken."""
    (reason,) = fetch(images, url).values()
    assert isinstance(reason, ImageError), reason
    assert "127.0.0" not in str(reason)
    return str(reason)


def test_a_picture_of_a_listed_host_is_fetched_with_nothing_of_ours_in_the_request(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    url = f"http://{NAME}:{server.port}/a.png"
    assert fetch(fetcher(server), url, url) == {url: server.png}
    ((_, headers, _),) = server.asked
    assert headers["Host"] == f"{NAME}:{server.port}"
    assert set(headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}


PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "2002:101:101::1"]
NOT_PUBLIC = [
    "0.0.0.0", "10.0.0.1",  # noqa: S104 - nothing is bound to it
    "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "192.168.0.1", "192.0.2.1",
    "198.18.0.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::ffff:10.0.0.1", "64:ff9b::101:101",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "fe80::1", "fe80::1%1",
    "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
]  # fmt: skip


def test_which_addresses_are_public():
    assert [address for address in PUBLIC if not is_public(address)] == []
    assert [address for address in NOT_PUBLIC if is_public(address)] == []


@pytest.mark.parametrize("address", ["127.0.0.2", "169.254.169.254", "::1", "::ffff:127.0.0.2", "10.0.0.1"])
def test_a_listed_name_with_an_address_that_is_not_public_is_not_asked(server, address):
    for found in ([address], ["127.0.0.1", address]):  # one of them is enough
        assert "no public address" in refused(fetcher(server, names(pictures_test=found)), f"http://{NAME}:{server.port}/a.png")
    assert server.asked == []


def test_the_connection_goes_to_the_address_that_was_judged(server):
    # DNS rebinding: the name's second answer would be another machine. It is never asked for.
    resolve = names(pictures_test=[["127.0.0.1"], ["169.254.169.254"]])
    images, url = fetcher(server, resolve), f"http://{NAME}:{server.port}/a.png"
    assert fetch(images, url) == {url: server.png}
    assert resolve.asked == [NAME]
    assert "no public address" in refused(images, url), "asked for anew, it is judged anew"


def test_a_redirect_is_judged_anew_even_to_the_same_name(server):
    server.routes["/go"] = (302, {"Location": "/a.png"}, b"")
    url = f"http://{NAME}:{server.port}/go"
    assert fetch(fetcher(server), url) == {url: server.png}
    rebound = names(pictures_test=[["127.0.0.1"], ["127.0.0.2"]])
    assert "no public address" in refused(fetcher(server, rebound), url)
    assert rebound.asked == [NAME, NAME]


def test_an_address_that_does_not_answer_gives_way_to_the_next(server):
    images = fetcher(server, names(pictures_test=["127.0.0.3", "127.0.0.1"]), is_allowed=lambda _: True)
    url = f"http://{NAME}:{server.port}/a.png"
    assert fetch(images, url) == {url: server.png}


LEADS = [
    ("http://169.254.169.254/latest/meta-data/", "not fetched from this host"),
    ("http://127.0.0.1:{port}/a.png", "not fetched from this host"),
    ("http://[::1]:{port}/a.png", "not fetched from this host"),
    ("http://[::ffff:127.0.0.1]:{port}/a.png", "not fetched from this host"),
    ("http://2130706433:{port}/a.png", "not fetched from this host"),
    ("http://0x7f000001:{port}/a.png", "not fetched from this host"),
    ("http://0177.0.0.1:{port}/a.png", "not valid"),
    ("http://127.1:{port}/a.png", "not fetched from this host"),
    ("http://localhost:{port}/a.png", "not fetched from this host"),
    (f"http://{NAME}.:{{port}}/a.png", "not fetched from this host"),
    (f"http://{NAME}/a.png", "not fetched from this host"),
    (f"http://{NAME}:0/a.png", "not fetched from this host"),
    (f"http://{NAME}:22/", "not fetched from this host"),
    (f"http://x.{NAME}:{{port}}/a.png", "not fetched from this host"),
    (f"http://{NAME}.evil.test:{{port}}/a.png", "not fetched from this host"),
    (f"http://{NAME}%2eevil.test:{{port}}/a.png", "not"),
    (f"http://{NAME}@127.0.0.1:{{port}}/a.png", "user or a password"),
    (f"http://{NAME}:{{port}}@127.0.0.1:{{port}}/a.png", "user or a password"),
    (f"http://user:secret@{NAME}:{{port}}/a.png", "user or a password"),
    ("file:///etc/passwd", "Expected a picture's address"),
    ("//etc/passwd", "not fetched from this host"),
    ("ftp://pictures.test/a.png", "Expected a picture's address"),
    ("gopher://127.0.0.1:6379/_FLUSHALL", "Expected a picture's address"),
    ("data:image/png;base64,AAAA", "Expected a picture's address"),
]


@pytest.mark.parametrize(("where", "says"), LEADS, ids=[where for where, _ in LEADS])
def test_neither_an_address_nor_a_redirect_leads_elsewhere(server, where, says):
    where = where.format(port=server.port)
    if not where.startswith("//"):
        reason = refused(fetcher(server), where)
        assert says in reason
        assert "secret" not in reason
    server.routes["/go"] = (307, {"Location": where}, b"")
    assert says in refused(fetcher(server), f"http://{NAME}:{server.port}/go")
    assert [path for *_, path in server.asked] == ["/go"]


@pytest.mark.parametrize(
    "url",
    [f"http://{NAME}\\@127.0.0.1/", f"http://{NAME}\\\\127.0.0.1/", f"http://{NAME}\t/", f"http://{NAME}\r\nX: y/", f" http://{NAME}/",
     f"http://{NAME}/ä.png", f"http://{NAME}/" + "a" * 3_000, "http://", "http:///a.png", "https://[::1",
     f"http://{NAME}:99999/", "/a.png", ""],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(server, url):
    refused(fetcher(server), url)
    assert server.asked == []


def test_redirects_are_counted(server):
    for number in range(MOST_REDIRECTS + 2):
        server.routes[f"/{number}"] = (301, {"Location": f"/{number + 1}"}, b"")
    server.routes[f"/{MOST_REDIRECTS + 1}"] = server.routes["/a.png"]
    assert len(fetch(fetcher(server), f"http://{NAME}:{server.port}/1").popitem()[1]) == len(server.png)
    assert f"more than {MOST_REDIRECTS} times" in refused(fetcher(server), f"http://{NAME}:{server.port}/0")


def test_plain_http_is_refused_unless_allowed_also_behind_a_redirect(server):
    assert "https only" in refused(fetcher(server, allow_http=False), f"http://{NAME}:{server.port}/a.png")
    assert server.asked == []


def endless(handler):
    """A body without end, as fast as it is taken."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.end_headers()
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"x" * 1_000)


def slow(handler):
    """A byte now and then: each in time, the whole never."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.end_headers()
    while not handler.server.stopped.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def silent(handler):
    """No answer at all."""
    handler.server.stopped.wait(30)


def broken(handler):
    """Fewer bytes than were promised."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b"x")


PNG = {"Content-Type": "image/png"}


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (endless, "larger than the 10000 bytes"),
        (slow, "within 0.5 seconds"),
        (silent, "within 0.5 seconds"),
        (broken, "broke off"),
        ((200, {**PNG, "Content-Length": "99999999999"}, b""), "larger than"),
        ((200, PNG, b"x" * 10_001), "larger than"),
        ((200, {**PNG, "Content-Encoding": "gzip"}, gzip.compress(b"\0" * 5_000_000)), "compressed"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "did not send one of"),
        ((200, {"Content-Type": "image/svg+xml"}, b"<svg>"), "did not send one of"),
        ((200, {}, b"x"), "did not send one of"),
        ((404, PNG, b"x"), "status 404"),
        ((206, PNG, b"x"), "status 206"),
        ((304, {}, b""), "status 304"),
        ((302, {}, b""), "status 302"),
        ((302, {"Location": "http://[oops"}, b""), "not fetched from this host"),
        ((200, {**PNG, "X-Long": "y" * 200_000}, b"x"), "broke off"),
    ],
)
def test_what_a_server_may_answer_is_bounded(server, route, says):
    server.routes["/bad"] = route
    seconds = 0.5 if route in (slow, silent) else 20
    assert says in refused(fetcher(server, seconds=seconds), f"http://{NAME}:{server.port}/bad")


def test_the_limits_are_exact_and_all_pictures_of_a_request_share_them(server):
    server.routes["/whole"] = (200, PNG, b"x" * 10_000)
    server.routes["/half"] = (200, PNG, b"x" * 5_000)
    server.routes["/more"] = (200, PNG, b"x" * 5_001)
    whole, half, more, last = (f"http://{NAME}:{server.port}/{name}" for name in ("whole", "half", "more", "a.png"))
    assert [len(data) for data in fetch(fetcher(server), whole, half).values()] == [10_000, 5_000]
    found = fetch(fetcher(server), whole, more, last)
    assert list(found) == [whole, more], "what comes behind a picture that is refused is not asked for"
    assert "5000 bytes" in str(found[more])


def test_a_server_that_is_not_there(server):
    server.shutdown()
    server.server_close()
    assert "could not be reached" in refused(fetcher(server), f"http://{NAME}:{server.port}/a.png")

    async def unknown(*_):
        raise OSError("no such name")

    assert "could not be reached" in refused(fetcher(server, unknown), f"http://{NAME}:{server.port}/a.png")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.mark.parametrize(("named", "is_trusted", "is_taken"), [(NAME, True, True), ("other.test", True, False), (NAME, False, False)])
def test_over_https_the_certificate_must_be_the_name_s(make, authority, named, is_trusted, is_taken):
    of_server, of_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(named).configure_cert(of_server)
    if is_trusted:
        authority.configure_trust(of_client)
    with listening(of_server) as server:
        server.routes["/a.png"] = (200, PNG, make.encoded(make.picture(8, 8)))
        url = f"https://{NAME}:{server.port}/a.png"
        images = fetcher(server, allow_http=False, tls=of_client)
        if is_taken:
            assert fetch(images, url)[url] == server.routes["/a.png"][2]
        else:
            assert "could not be reached" in refused(images, url)
            assert server.asked == []


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
