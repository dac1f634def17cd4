"""The embedded Valkey: started, found by others, stopped; a taken port is said plainly and an orphan replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from redis import Redis

from introspect_service.embedded_valkey import OWNER_KEY, EmbeddedValkey
from introspect_service.errors import PortInUseError
from introspect_service.ports import claim_port, port_is_free


@pytest.fixture
def valkey(make):
    made = EmbeddedValkey(make.free_port())
    yield made
    made.stop()


def test_it_starts_answers_on_the_loopback_only_and_stops(valkey):
    valkey.start()
    assert valkey.url == f"redis://127.0.0.1:{valkey.port}"
    with Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.info("server")["server_name"] == "valkey"
        assert client.config_get("bind")["bind"].split() == ["127.0.0.1"]
        assert client.config_get("save")["save"] == ""
    valkey.stop()
    assert port_is_free("127.0.0.1", valkey.port)


def test_a_port_that_is_taken_is_said_plainly(valkey):
    with (
        socket.create_server(("127.0.0.1", valkey.port)),
        pytest.raises(PortInUseError, match=rf"{valkey.port}.*--redis-port.*--redis off"),
    ):
        valkey.start()


def test_another_service_s_valkey_is_left_alone(valkey):
    valkey.start()
    with pytest.raises(PortInUseError, match="another introspect service"):
        EmbeddedValkey(valkey.port).claim_port()
    with Redis.from_url(valkey.url) as client:
        assert client.ping()


def test_what_a_killed_service_left_behind_is_replaced(valkey):
    code = f"""
import time
from introspect_service.embedded_valkey import EmbeddedValkey
EmbeddedValkey({valkey.port}).start()
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "started\n"
        killed.kill()
        killed.wait(10)
    assert not port_is_free("127.0.0.1", valkey.port)
    valkey.start()
    with Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.get(OWNER_KEY).endswith(f"/{os.getpid()}")


def test_ctrl_c_does_not_reach_it(valkey):
    valkey.start()
    with Redis.from_url(valkey.url, decode_responses=True) as client:
        process = int(client.info("server")["process_id"])
        os.kill(process, signal.SIGINT)
        assert client.ping()


def test_a_claimed_port_is_nobody_else_s(make):
    port = make.free_port()
    with claim_port("127.0.0.1", port):
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(PortInUseError, match=rf"port {port}.*--port"):
            claim_port("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)
