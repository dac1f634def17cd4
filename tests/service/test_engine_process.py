"""The engine in a process of its own: what it says is what one in this process says, and nothing is lost in silence when it ends."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from introspect.async_engine import AsyncEngine
from introspect.callers import EngineClosedError
from introspect.engine import Engine
from introspect.errors import HeadScoresError, ModelLoadError, RequestError
from introspect.head_row import HeadRow
from introspect.loading import load_model
from introspect.types import Budget, PromptInfo, Request, SamplingParams
from introspect_service import engine_process, engine_worker
from introspect_service.engine_link import EngineLostError
from introspect_service.engine_process import EngineProcess
from introspect_service.settings import Settings
from introspect_service.wire import Opening

LONG = 800
"""Tokens of an answer that takes seconds, as long as its model may go on."""


def opening(folder, **changes):
    given = {"model": str(folder), "device": "cpu", "heads": None, "threads": 1, "max_batch": 4, "json_logs": False}
    return Opening(**(given | changes))


@pytest.fixture(scope="module")
def process(model_folder):
    made = EngineProcess(opening(model_folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def mortal(model_folder):
    """One with a single place, whose processes are ended by the tests that share it."""
    made = EngineProcess(opening(model_folder, max_batch=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def thread(model_folder):
    made = AsyncEngine(Engine(load_model(str(model_folder)), max_batch=4))
    yield made
    made.close()


def ask(name="r", seed=0, max_tokens=6, **changes):
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    asked = Request.ask(name, "what digit is at row 2 column 3 ?", Image.fromarray(noise), sampling=SamplingParams(max_tokens=max_tokens))
    return replace(asked, **changes)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def same(one, other):
    """Whether two values are the same to the bit, arrays included."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, HeadRow | PromptInfo):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other and type(one) is type(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": Budget("snapkv", entries=12), "seed": 1},
        {"sampling": SamplingParams(max_tokens=9, temperature=1.5, top_p=0.9, seed=3, stop=("7",)), "seed": 2},
        {"influence": True, "max_tokens": 24},
        {"signals": False},
    ],
    ids=["whole", "budget", "drawn", "influence", "without signals"],
)
def test_every_number_of_every_step_is_that_of_an_engine_in_this_process(process, thread, changes):
    here, there = (list(engine.generate([ask(**changes)])) for engine in (thread, process))
    assert len(here) == len(there) > 1
    for one, other in zip(here, there, strict=True):
        for field in fields(one):
            assert same(getattr(one, field.name), getattr(other, field.name)), field.name
    assert all(step.prompt is there[0].prompt for step in there)
    assert (there[0].heads is None) == (changes.get("signals") is False)


def test_answers_are_decoded_together(process):
    """The second one begins, and ends, while the first is made."""
    first = process.generate([ask("r1", 1, max_tokens=LONG)])
    next(first)
    assert len(list(process.generate([ask("r2", 2)]))) == 7
    assert process.running == 1
    assert process.waiting == 0
    first.close()
    wait_for(lambda: process.running == 0)


def test_who_leaves_frees_the_memory(process):
    steps = process.generate([ask(max_tokens=LONG)])
    next(steps)
    assert process.kv_bytes.owned > 0
    assert process.running == 1
    steps.close()
    wait_for(lambda: process.kv_bytes.allocated == process.running == process.waiting == 0)
    assert not process._tickets


def test_choices_of_a_request_are_encoded_once(process, monkeypatch):
    encoded, encode = [], process._encode
    monkeypatch.setattr(process, "_encode", lambda request: encoded.append(request) or encode(request))
    request = ask()
    heard = queue.SimpleQueue()
    leaves = [process.follow(replace(request, id=f"r-{number}"), heard.put) for number in range(3)]
    steps = [heard.get(timeout=60) for _ in range(3 * 7)]
    assert len(encoded) == 1
    assert {step.prompt.request_id for step in steps} == {"r-0", "r-1", "r-2"}
    for leave in leaves:
        leave()


def test_an_error_reaches_only_who_made_it(process):
    wrong = SamplingParams(max_tokens=4, stop=(7,))
    with pytest.raises(RequestError, match="exceed the context"):
        process.encode(ask(max_tokens=10_000))
    with pytest.raises(RequestError, match="policy"):
        next(process.generate([ask(budget=Budget("no such policy", entries=8))]))
    for bad in ({"sampling": wrong}, {"sampling": SamplingParams(seed=1 << 70)}, {"id": 5}, {"id": object()}):
        with pytest.raises(RequestError, match="cannot be sent"):
            next(process.generate([replace(ask(), **bad)]))
    assert not process._tickets
    assert len(list(process.generate([ask()]))) == 7


def test_what_the_process_refuses_is_the_request_s_own_error(process):
    prompt = process.encode(ask())
    forged = replace(prompt, request=replace(prompt.request, budget=Budget("snapkv", entries=2, ratio=0.5)))
    heard = []
    process._submit(forged, heard.append)
    wait_for(lambda: heard)
    assert isinstance(heard[0], RequestError)
    assert "entries" in str(heard[0])


def test_a_process_that_is_killed_loses_its_answers_and_another_one_answers_what_waited(mortal):
    engine, restarts = mortal, mortal.restarts
    expected = [step.token_id for step in engine.generate([ask()])]
    steps, first, heard = engine.generate([ask(max_tokens=LONG)]), engine.process_id, queue.SimpleQueue()
    next(steps)
    engine.follow(ask("waits"), heard.put)  # there is one place
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineLostError, match="ended"):
        list(steps)
    assert [heard.get(timeout=60).token_id for _ in range(7)] == expected
    assert engine.process_id not in (first, None)
    assert (engine.restarts, engine.alive) == (restarts + 1, True)
    assert not engine._tickets


def test_a_request_that_ends_every_process_is_given_to_two_and_fails(mortal, monkeypatch):
    """A stand-in for what cannot be had at will: each process is killed when it is given something."""
    engine = mortal
    killed, send = [], engine._send

    def kill(ticket):
        killed.append(engine.process_id)
        os.kill(engine.process_id, signal.SIGKILL)
        send(ticket)

    monkeypatch.setattr(engine, "_send", kill)
    with pytest.raises(EngineLostError):
        list(engine.generate([ask()]))
    assert len(set(killed)) == 2
    monkeypatch.undo()
    assert len(list(engine.generate([ask()]))) == 7


def test_a_model_that_is_gone_fails_who_asks_until_it_is_back_and_nobody_has_to_ask(model_folder, tmp_path):
    folder, away = tmp_path / "model", tmp_path / "away"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).symlink_to(file)
    with closing(EngineProcess(opening(folder))) as engine:
        folder.rename(away)
        os.kill(engine.process_id, signal.SIGKILL)
        wait_for(lambda: not engine.alive)
        with pytest.raises(ModelLoadError):
            list(engine.generate([ask()]))
        assert not engine._tickets
        away.rename(folder)
        wait_for(lambda: engine.alive)
        assert len(list(engine.generate([ask()]))) == 7


def test_where_no_process_can_be_begun_who_asks_is_told(mortal, monkeypatch):
    engine = mortal

    def fails():
        raise OSError("no room")

    with monkeypatch.context() as full:
        full.setattr(engine_process, "launch", fails)
        os.kill(engine.process_id, signal.SIGKILL)
        wait_for(lambda: not engine.alive)
        with pytest.raises(OSError, match="no room"):
            list(engine.generate([ask()]))
    assert len(list(engine.generate([ask()]))) == 7


def test_an_engine_that_stands_still_holds_up_nobody_and_can_be_closed(model_folder):
    engine = EngineProcess(opening(model_folder))
    first, prompt, heard = engine.process_id, engine.encode(ask()), []
    os.kill(first, signal.SIGSTOP)
    big = replace(prompt, pixels={"pixel_values": torch.zeros(1, 3, 1024, 1024)})  # more than a socket takes at once
    leave = engine._submit(big, heard.append)
    engine._submit(prompt, heard.append)
    leave()
    engine.close(seconds=30)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert [type(error) for error in heard] == [EngineClosedError]


def test_a_process_that_is_told_nonsense_ends_and_another_one_begins(mortal):
    engine, restarts = mortal, mortal.restarts
    engine._link.send(b"nonsense")
    wait_for(lambda: engine.restarts == restarts + 1 and engine.alive)
    assert len(list(engine.generate([ask()]))) == 7


def test_a_device_that_is_of_no_use_any_more_ends_the_process(monkeypatch):
    """No device here: what is looked at is which errors are followed by a look at the device."""
    looked = []
    monkeypatch.setattr(torch.cuda, "synchronize", looked.append)
    worker = SimpleNamespace(_device=torch.device("cuda"))
    for problem in (RequestError("too long"), torch.OutOfMemoryError("full")):
        engine_worker.Worker._check_device(worker, problem)
    assert not looked
    engine_worker.Worker._check_device(worker, RuntimeError("illegal address"))
    assert looked == [torch.device("cuda")]
    engine_worker.Worker._check_device(SimpleNamespace(_device=torch.device("cpu")), RuntimeError("wrong"))
    assert len(looked) == 1


def test_signals_of_the_terminal_are_for_the_service_to_hear(process):
    steps, own = process.generate([ask(max_tokens=60)]), (process.process_id, process.restarts)
    next(steps)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.process_id, number)
    assert len(list(steps)) == 60
    assert len(list(process.generate([ask()]))) == 7
    assert (process.process_id, process.restarts) == own


def test_a_closed_engine_ends_its_answers_and_its_process_and_can_begin_again(model_folder):
    engine = EngineProcess(opening(model_folder))
    first = engine.process_id
    steps = engine.generate([ask(max_tokens=LONG)])
    next(steps)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(steps)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert len(list(engine.generate([ask()]))) == 7
    assert engine.restarts == 0
    engine.close()


@pytest.mark.parametrize(
    "changes", [{"model": "./no-such-model"}, {"heads": "no-such.json"}, {"device": "no-such"}], ids=["model", "heads", "device"]
)
def test_what_cannot_be_loaded_is_refused_with_its_own_error(model_folder, changes):
    with pytest.raises(HeadScoresError if "heads" in changes else ModelLoadError, match="no-such"):
        EngineProcess(opening(model_folder, **changes))


LEAVES = """
import os, sys
from introspect_service import engine_link, launching
from introspect_service.engine_process import EngineProcess
from introspect_service.wire import Opening, encode
from introspect.types import Request
opening = Opening(sys.argv[1], "cpu", None, 1, 4, False)
if sys.argv[2] == "loading":
    link = engine_link.Link(launching.launch())
    print(link.process_id, flush=True)
    link._connection.send_bytes(encode(opening))
    os.kill(os.getpid(), 9)
engine = EngineProcess(opening)
print(engine.process_id, flush=True)
steps = engine.generate([Request.ask("r", "hello")])
next(steps)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
raise SystemExit(3)
"""


def is_gone(number):
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(number, 0)
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


@pytest.mark.parametrize(("how", "status"), [("ends", 3), ("killed", -9), ("loading", -9)])
def test_a_program_that_ends_takes_the_process_with_it_and_that_says_nothing(model_folder, how, status):
    done = subprocess.run([sys.executable, "-c", LEAVES, str(model_folder), how], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    wait_for(lambda: is_gone(int(done.stdout)))
    assert "Traceback" not in done.stderr


def test_a_service_whose_engine_is_killed_says_so_and_goes_on(model_folder, make):
    """The answer fails, another process answers the next question, and what tells of the service tells that."""
    settings = Settings(model=str(model_folder), probes="off", redis="off", port=make.free_port())
    with make.running(settings, None) as (url, app), openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        engine, model = app.state.service.backend.engine, client.models.list().data[0].id
        seen = {"model": model, "messages": make.messages(), "max_tokens": LONG}
        with client.chat.completions.create(**seen, stream=True) as chunks:
            next(chunks)
            os.kill(engine.process_id, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="server"):
                list(chunks)
        said = client.chat.completions.create(**seen | {"max_tokens": 5})
        assert said.usage.completion_tokens == 5
        ready = httpx.get(f"{url}/readyz")
        assert (ready.status_code, ready.json()["engine"]) == (200, {"alive": True, "restarts": 1})
        assert "introspect_engine_restarts_total 1.0" in httpx.get(f"{url}/metrics").text
        engine.close()
        down = httpx.get(f"{url}/readyz")
        assert (down.status_code, down.json()["status"]) == (503, "engine_down")
    assert engine.process_id is None  # the app ended what it had begun
