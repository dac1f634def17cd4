"""SIGTERM: what was accepted is finished, what comes is sent elsewhere, and after a limit the service stops all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx

COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]


@contextmanager
def serving(make, model_folder, **variables):
    """`introspect serve` as a process; its address and itself."""
    port = make.free_port()
    arguments = [*COMMAND, "serve", "--model", str(model_folder), "--probes", "off", "--redis", "off", "--port", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}) as process:
        try:
            while "EOF" not in (line := process.stdout.readline()):
                assert line, "it did not start"
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def body(model_folder, max_tokens):
    return {
        "model": str(model_folder.name), "messages": [{"role": "user", "content": "is there a 7 ?"}], "max_tokens": max_tokens,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def chunks(lines):
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def test_a_running_answer_is_finished_while_new_requests_are_sent_elsewhere(make, model_folder):
    with serving(make, model_folder, INTROSPECT_DRAIN_SECONDS="120") as (url, process):
        asked = body(model_folder, 200)
        asked["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=120) as answer:
            got = chunks(answer.iter_lines())
            next(got)
            process.send_signal(signal.SIGTERM)
            while (ready := httpx.get(f"{url}/readyz")).status_code == 200:
                pass
            assert ready.json()["status"] == "draining"
            assert httpx.get(f"{url}/livez").status_code == 200
            refused = httpx.post(f"{url}/v1/chat/completions", json={**asked, "stream": False}, timeout=60)
            rest = list(got)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) > 0
        assert rest[-1]["usage"]["completion_tokens"] == 200
        assert [c["choices"][0]["finish_reason"] for c in rest if c["choices"] and c["choices"][0]["finish_reason"]] == ["length"]
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_behind_the_limit_a_running_answer_is_told_that_the_server_stops(make, model_folder):
    with serving(make, model_folder, INTROSPECT_DRAIN_SECONDS="0.1") as (url, process):
        asked = body(model_folder, 1_000)
        asked["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=120) as answer:
            got = chunks(answer.iter_lines())
            next(got)
            process.send_signal(signal.SIGTERM)
            *_, last = got
        assert last["error"]["message"] == "The answer was given up: the server is shutting down."
        assert process.wait(30) in (0, -signal.SIGTERM)
