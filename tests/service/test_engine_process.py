"""The engine in a process of its own: what it says is what one in this process says, and nothing is lost in silence when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import fields, replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from introspect.async_engine import AsyncEngine
from introspect.callers import EngineClosedError
from introspect.engine import Engine
from introspect.errors import HeadScoresError, ModelLoadError, RequestError
from introspect.head_row import HeadRow
from introspect.loading import load_model
from introspect.types import Budget, PromptInfo, Request, SamplingParams
from introspect_service.engine_process import EngineLostError, EngineProcess
from introspect_service.settings import Settings
from introspect_service.wire import Opening


def opening(folder, **changes):
    given = {"model": str(folder), "device": "cpu", "heads": None, "threads": 1, "max_batch": 4, "json_logs": False}
    return Opening(**(given | changes))


@pytest.fixture(scope="module")
def process(model_folder):
    made = EngineProcess(opening(model_folder))
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
    """Steps of both come in turns."""
    order = []

    def read(number):
        order.extend(number for _ in process.generate([ask(f"r{number}", number, max_tokens=40)]))

    threads = [threading.Thread(target=read, args=(number,)) for number in (1, 2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert sorted(order) == [1] * 41 + [2] * 41
    assert 1 in order[order.index(2) : len(order) - order[::-1].index(2)]


def test_who_leaves_frees_the_memory(process):
    steps = process.generate([ask(max_tokens=400)])
    next(steps)
    wait_for(lambda: process.kv_bytes.filled > 0)
    assert process.running == 1
    steps.close()
    wait_for(lambda: process.kv_bytes.allocated == process.running == process.waiting == 0)


def test_an_error_reaches_only_who_made_it(process):
    wrong = SamplingParams(max_tokens=4, stop=(7,))
    with pytest.raises(RequestError, match="exceed the context"):
        process.encode(ask(max_tokens=10_000))
    with pytest.raises(RequestError, match="policy"):
        next(process.generate([ask(budget=Budget("no such policy", entries=8))]))
    with pytest.raises(TypeError, match="SamplingParams"):
        next(process.generate([ask(sampling=wrong)]))
    assert len(list(process.generate([ask()]))) == 7


def test_what_the_process_refuses_is_the_request_s_own_error(process):
    prompt = process.encode(ask())
    forged = replace(prompt, request=replace(prompt.request, budget=Budget("snapkv", entries=2, ratio=0.5)))
    heard = []
    process._submit(forged, heard.append)
    wait_for(lambda: heard)
    assert isinstance(heard[0], RequestError)
    assert "entries" in str(heard[0])


def test_a_process_that_is_killed_loses_its_answers_and_another_one_begins(model_folder):
    with closing(EngineProcess(opening(model_folder))) as engine:
        expected = [step.token_id for step in engine.generate([ask()])]
        steps, first = engine.generate([ask(max_tokens=400)]), engine.process_id
        next(steps)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EngineLostError, match="-9"):
            list(steps)
        assert [step.token_id for step in engine.generate([ask()])] == expected  # waits for the other one
        assert engine.process_id not in (first, None)
        assert engine.restarts == 1
        assert engine.alive


def test_a_model_that_is_gone_when_another_process_begins_fails_who_asks_until_it_is_back(model_folder, tmp_path):
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
        assert not engine.alive
        away.rename(folder)
        assert len(list(engine.generate([ask()]))) == 7


def test_signals_of_the_terminal_are_for_the_service_to_hear(process):
    steps = process.generate([ask(max_tokens=60)])
    next(steps)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.process_id, number)
    assert len(list(steps)) == 60


def test_a_closed_engine_ends_its_answers_and_its_process_and_can_begin_again(model_folder):
    engine = EngineProcess(opening(model_folder))
    first = engine.process_id
    steps = engine.generate([ask(max_tokens=400)])
    next(steps)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(steps)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert len(list(engine.generate([ask()]))) == 7
    assert engine.restarts == 0
    engine.close()


@pytest.mark.parametrize("changes", [{"model": "./no-such-model"}, {"heads": "no-such-file.json"}], ids=["model", "heads"])
def test_what_cannot_be_loaded_is_refused_with_its_own_error(model_folder, changes):
    with pytest.raises(ModelLoadError if "model" in changes else HeadScoresError, match="no-such"):
        EngineProcess(opening(model_folder, **changes))


LEAVES = """
import os, sys
from introspect_service.engine_process import EngineProcess
from introspect_service.wire import Opening
from introspect.types import Request
engine = EngineProcess(Opening(sys.argv[1], "cpu", None, 1, 4, False))
print(engine.process_id, flush=True)
steps = engine.generate([Request.ask("r", "hello")])
next(steps)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "status"), [("ends", 3), ("killed", -9)])
def test_a_program_that_ends_in_mid_answer_takes_the_process_with_it(model_folder, how, status):
    done = subprocess.run([sys.executable, "-c", LEAVES, str(model_folder), how], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    child = int(done.stdout)

    def is_gone():
        with suppress(ProcessLookupError):
            os.kill(child, 0)
            return "Z" in Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return True

    wait_for(is_gone, 20)


def test_a_service_whose_engine_is_killed_says_so_and_goes_on(model_folder, make):
    """The answer fails, the service is not ready until another process is, and the next question is answered."""
    settings = Settings(model=str(model_folder), probes="off", redis="off", port=make.free_port())
    with make.running(settings, None) as (url, app), openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        engine, model = app.state.service.backend.engine, client.models.list().data[0].id
        seen = {"model": model, "messages": make.messages(), "max_tokens": 400}
        with client.chat.completions.create(**seen, stream=True) as chunks:
            next(chunks)
            os.kill(engine.process_id, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="server"):
                list(chunks)
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        said = client.chat.completions.create(**seen | {"max_tokens": 5})
        assert said.usage.completion_tokens == 5
        ready = httpx.get(f"{url}/readyz")
        assert (ready.status_code, ready.json()["engine"]) == (200, {"alive": True, "restarts": 1})
        assert "introspect_engine_restarts_total 1.0" in httpx.get(f"{url}/metrics").text
    assert engine.process_id is None  # the app ended what it had begun
