"""A plain HTTP client that times the tokens of streamed answers, and many of them at once."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from introspect_service.page import SAMPLES

PICTURE = "scene-1.png"
LONG, SHORT = "describe everything", "what digit is at row 2 column 3 ?"
"""A question with an answer of some fifty tokens, of which twenty decide a claim, and one with an answer of two."""

_TIMEOUT_SECONDS = 120.0


@dataclass
class Answered:
    """One request: seconds from sending to each token's chunk, tokens by the server's count, and the HTTP status."""

    status: int
    seconds: float
    tokens: int = 0
    arrivals: list[float] = field(default_factory=list)
    published: bool | None = None


def body(question: str, *, stream: bool, max_tokens: int = 64) -> bytes:
    """A request about the sample picture."""
    image = base64.b64encode((SAMPLES / PICTURE).read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}, {"type": "text", "text": question}]
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "max_tokens": max_tokens, "introspection": True}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


class Client:
    """One connection to a service on this machine; not to be shared between threads."""

    def __init__(self, port: int, model: str) -> None:
        self._port, self._model = port, json.dumps(model).encode()

    def ask(self, question: bytes) -> Answered:
        """Send a `body` and read the whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        try:
            started = time.perf_counter()
            whole = b'{"model": ' + self._model + b", " + question[1:]
            connection.request("POST", "/v1/chat/completions", whole, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = Answered(response.status, 0.0)
            if response.getheader("Content-Type", "").startswith("text/event-stream"):
                self._follow(response, said, started)
            else:
                self._note(json.loads(response.read()), said)
            said.seconds = time.perf_counter() - started
            return said
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """JSON of a route."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def _follow(self, response: http.client.HTTPResponse, said: Answered, started: float) -> None:
        for line in response:
            if line.startswith(b"data: {"):
                now, chunk = time.perf_counter() - started, json.loads(line[6:])
                if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                    said.arrivals.append(now)
                self._note(chunk, said)

    def _note(self, answer: dict[str, Any], said: Answered) -> None:
        if answer.get("usage"):
            said.tokens = int(answer["usage"]["completion_tokens"])
        if answer.get("introspection"):
            said.published = answer["introspection"].get("published")


def at_once(streams: int, go_on: Callable[[int], bool], client: Callable[[], Client], question: bytes) -> list[Answered]:
    """Ask again and again from `streams` threads.

    Args:
        streams: how many answers are asked for at the same time.
        go_on: whether to send another, by the number sent so far.
        client: makes a client.
        question: a `body`.
    """
    done: list[Answered] = []
    lock = threading.Lock()
    sent = 0

    def work() -> None:
        nonlocal sent
        own = client()
        while True:
            with lock:
                if not go_on(sent):
                    return
                sent += 1
            said = own.ask(question)
            with lock:
                done.append(said)

    threads = [threading.Thread(target=work) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done
