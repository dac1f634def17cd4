"""A real server of pictures on the loopback, and a fetcher of remote pictures for which that is a public one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from introspect_service.errors import ImageError
from introspect_service.remote_images import RemoteImages, is_public

PNG = {"Content-Type": "image/png"}
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
