"""The engine of many callers: steps as they come, closing frees memory, errors stay with who made them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from families import TinyModel

from introspect.async_engine import AsyncEngine
from introspect.callers import EngineClosedError
from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.types import Request, SamplingParams


@pytest.fixture
def engine(tiny_llava: TinyModel) -> Iterator[AsyncEngine]:
    made = AsyncEngine(Engine(tiny_llava.loaded, max_batch=4))
    yield made
    made.close()


def ask(number: int, max_tokens: int = 12) -> Request:
    return Request.ask(f"r{number}", f"what digit is at row {number} column 1 ?", sampling=SamplingParams(max_tokens=max_tokens))


def settled(engine: AsyncEngine) -> None:
    """Wait until the engine's thread has nothing to do."""
    until = time.monotonic() + 20
    while engine.running or engine.waiting or engine.kv_bytes.allocated:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_streams_interleave_and_say_what_they_say_alone(engine: AsyncEngine, tiny_llava: TinyModel) -> None:
    order: list[int] = []

    async def read(number: int) -> list[int]:
        tokens = []
        async for step in engine.stream(ask(number)):
            order.append(number)
            tokens.append(step.token_id)
        return tokens

    async def both() -> list[list[int]]:
        return await asyncio.gather(read(1), read(2))

    together = asyncio.run(both())
    alone = [[s.token_id for s in Engine(tiny_llava.loaded).generate([ask(number)])] for number in (1, 2)]
    assert together == alone
    assert 1 in order[order.index(2) : len(order) - order[::-1].index(2)]  # between the second one's first and last step
    settled(engine)


def test_closing_a_stream_frees_its_memory(engine: AsyncEngine) -> None:
    async def leave() -> None:
        steps = engine.stream(ask(1, max_tokens=400))
        await anext(steps)
        assert engine.kv_bytes.owned > 0
        await steps.aclose()

    asyncio.run(leave())
    settled(engine)  # it would take a long time to come to its end
    assert engine.kv_bytes.owned == 0


def test_an_error_reaches_only_who_made_it(engine: AsyncEngine) -> None:
    bad = replace(ask(2), sampling=SamplingParams(stop=(7,)))  # type: ignore[arg-type]

    async def read(request: Request) -> int:
        return len([step async for step in engine.stream(request)])

    async def all_three() -> list[int | BaseException]:
        return await asyncio.gather(read(ask(1)), read(bad), read(replace(ask(3), messages=())), return_exceptions=True)

    good, failed, refused = asyncio.run(all_three())
    assert good == 13
    assert isinstance(failed, TypeError)
    assert isinstance(refused, RequestError)


def test_threads_share_the_engine_and_more_than_fit_wait(engine: AsyncEngine) -> None:
    found: dict[int, int] = {}

    def run(number: int) -> None:
        found[number] = len(list(engine.generate([ask(number, max_tokens=6)])))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(7), 7)


def test_a_closed_engine_ends_its_answers_and_can_begin_again(engine: AsyncEngine) -> None:
    steps = engine.generate([ask(1, max_tokens=400)])
    next(steps)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(steps)
    assert len(list(engine.generate([ask(1, max_tokens=2)]))) == 3


LEAVES_IN_MID_ANSWER = """
import atexit, threading
atexit.register(lambda: print([t.name for t in threading.enumerate() if t.daemon]))  # what is registered first is called last
from introspect.async_engine import AsyncEngine
from introspect.engine import Engine
from introspect.loading import load_model
from introspect.types import Request
steps = AsyncEngine(Engine(load_model("embedded"))).generate([Request.ask("r", "describe everything")])
next(steps)
raise SystemExit(3)
"""


def test_a_program_that_ends_in_mid_answer_takes_no_thread_into_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES_IN_MID_ANSWER], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == "[]"
