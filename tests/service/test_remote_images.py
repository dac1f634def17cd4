"""Pictures from other servers: what an operator allows is fetched, and no address, name, redirect or body leads anywhere else."""

from __future__ import annotations

import gzip
import ssl

import pytest
import trustme
from picture_server import NAME, PNG, fetch, fetcher, listening, names, refused

from introspect_service.remote_images import MOST_REDIRECTS, is_public


@pytest.fixture
def server(make):
    with listening() as made:
        made.png = make.encoded(make.picture(8, 8))
        made.routes["/a.png"] = (200, {"Content-Type": "image/png"}, made.png)
        yield made


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
