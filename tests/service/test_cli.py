"""The command as a newcomer meets it, each time as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]
PLAIN = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, env=PLAIN, check=False, **options)


def test_help_names_the_commands_and_loads_nothing_heavy():
    done = run("--help")
    assert done.returncode == 0
    for name in ("serve", "ask", "watch"):
        assert re.search(rf"\b{name}\b", done.stdout)
    heavy = "{'torch', 'transformers', 'fastapi', 'redis', 'numpy'}"
    code = f"import sys; import introspect_service.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_serve_has_the_options_of_the_contract():
    text = run("serve", "--help").stdout
    for option in ("--model", "--probes", "--policy", "--kv-budget", "--redis", "--host", "--port"):
        assert option in text


@pytest.mark.parametrize("option", ["--port", "--redis-port"])
def test_a_taken_port_is_said_plainly_before_anything_is_loaded(make, option):
    ports = {"--port": make.free_port(), "--redis-port": make.free_port()}
    with socket.create_server(("127.0.0.1", ports[option])):
        # A model that is not there: had it been loaded first, the message would be about it.
        done = run("serve", "--model", "./no-such-model", *(str(part) for pair in ports.items() for part in pair))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("introspect: ")
    assert str(ports[option]) in line
    assert option in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serve", "--kv-budget", "lots"), '"25%"'),
        (("serve", "--redis", "http://x"), "--redis (INTROSPECT_REDIS)"),
        (("serve", "--redis", "off", "--port", "0", "--model", "./no-such-model"), "no-such-model"),
        (("watch", "--redis", "redis://127.0.0.1:1"), "is the service running?"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_1(arguments, says):
    done = run(*arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("introspect: ")
    assert says in line


@pytest.fixture
def sample(tmp_path, make):
    path = tmp_path / "picture.png"
    path.write_bytes(make.encoded(make.picture()))
    return path


def test_ask_prints_one_json_document(sample, model_folder):
    done = run(
        "ask",
        str(sample),
        "what digit is red ?",
        "--json",
        "--model",
        str(model_folder),
        "--probes",
        "off",
        "--kv-budget",
        "64",
        "--policy",
        "random",
    )
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout)
    assert asked["question"] == "what digit is red ?"
    assert asked["model"] == str(model_folder)
    assert asked["introspection"]["effective_budget"]["policy"] == "random"
    assert asked["introspection"]["effective_budget"]["nominal"] == 64
    assert asked["introspection"]["calibrated"] is False
    assert "published" not in asked["introspection"]
    assert "".join(token["token"] for token in asked["tokens"] if not token["token"].startswith("bytes:")) == asked["answer"]
    assert len(asked["tokens"]) <= asked["completion_tokens"]


def test_ask_prints_the_answer_and_what_is_known(sample, model_folder):
    done = run("ask", str(sample), "what digit is red ?", "--model", str(model_folder), "--probes", "off", "--context", "photo by ada .")
    assert done.returncode == 0, done.stderr
    assert "mean_logprob" in done.stdout
    assert "not calibrated" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_ask_refuses_what_is_no_picture(tmp_path, model_folder):
    path = tmp_path / "text.png"
    path.write_text("hello")
    done = run("ask", str(path), "what ?", "--model", str(model_folder), "--probes", "off")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["introspect: The picture cannot be read as png, jpeg or webp."]


def test_serve_prints_a_question_that_works_as_printed_and_stops_when_told(make, model_folder):
    ports = ("--port", str(make.free_port()), "--redis-port", str(make.free_port()))
    arguments = [*COMMAND, "serve", "--model", str(model_folder), "--probes", "off", *ports]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN, cwd=ROOT) as served:
        try:
            lines = []
            while not (lines and "another terminal" in lines[-1]):
                line = served.stdout.readline()
                assert line, served.stderr.read()
                lines.append(line)
            printed = "".join(lines)
            assert f"http://127.0.0.1:{ports[1]}" in printed
            assert f"redis://127.0.0.1:{ports[3]}  key introspect:v1:signals" in printed
            question = printed[printed.index("curl") : printed.index("\nEOF\n") + 5]
            answer = subprocess.run(["bash", "-c", question], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
            assert json.loads(answer.stdout)["introspection"]["published"] is True
            watch = [*COMMAND, "watch", "--from", "0", "--redis", f"redis://127.0.0.1:{ports[3]}"]
            with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=PLAIN) as watched:
                heard = [json.loads(watched.stdout.readline()) for _ in range(3)]
                watched.send_signal(signal.SIGINT)
            assert [event["type"].split(".")[1] for event in heard] == ["started", "step", "step"]
            assert watched.returncode == -signal.SIGINT
        finally:
            served.send_signal(signal.SIGTERM)
            served.wait(30)
    assert served.returncode in (0, -signal.SIGTERM)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(ports[3])))


@pytest.mark.parametrize("command", [["train", "--traces", ".", "--out", "x"], ["bench", "engine", "--study", "heads", "--n", "2"]])
def test_a_command_whose_extra_is_missing_names_it(command):
    code = f"import sys; sys.modules.update(pyarrow=None, sklearn=None); from introspect_service.cli import app; app({command!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "is missing: pip install 'introspect-mllm[probes]'" in done.stderr
    assert "Traceback" not in done.stderr
