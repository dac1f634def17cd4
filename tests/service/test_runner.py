"""The line in front of the engine: places, their order, and what becomes of requests that are given up."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from introspect.errors import RequestError
from introspect.types import EffectiveBudget, LogitStats, PromptInfo, Request, StepTrace
from introspect_probes.training_free import TrainingFreeScores
from introspect_service.errors import QueueFullError
from introspect_service.generation import Begun, Ended, Token
from introspect_service.runner import Failed, Runner

PROMPT = PromptInfo(
    request_id="r", question="?", token_ids=np.arange(5), segments=np.zeros(5, np.uint8), image_embedding=None, image_grids=(),
    budget=EffectiveBudget("full", 5, 5, 5), logical=np.zeros(6, np.int32), retention=np.zeros((1, 1, 6), np.float32),
)  # fmt: skip


def step(index, finish=None):
    """A control token, which nothing is scored of, or the closing step."""
    logits = None if finish else LogitStats(-0.5, 1.0, 0.5, (1, 2), (-0.5, -1.0))
    return StepTrace(PROMPT, index, 4 + index, -1 if finish else 1, "", True, logits, None, finish)


class Unscored:
    """A scorer that knows nothing."""

    name = None

    def session(self, prompt, *, provisional):
        assert not provisional
        return TrainingFreeScores(prompt)


class Gated(Unscored):
    """Begins to score when it is let."""

    def __init__(self):
        self.begun, self.gate = threading.Event(), threading.Event()

    def session(self, prompt, *, provisional):
        self.begun.set()
        assert self.gate.wait(10)
        return super().session(prompt, provisional=provisional)


class Hand:
    """An engine that is worked by hand: who runs, who was let go, and what to say to whom."""

    def __init__(self):
        self.sinks, self.left = {}, []

    def follow(self, request, sink):
        if request.id == "refused":
            raise RequestError("expected something else")
        self.sinks[request.id] = sink
        return lambda: self.left.append(request.id)

    def answer(self, name):
        for given in (step(0), step(1), step(2), step(3, "stop")):
            self.sinks[name](given)


async def until(condition):
    """Wait for what other threads bring about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads set no event of this loop
            await asyncio.sleep(0.001)


def run(scene, *, max_batch=1, queue_depth=2):
    """Play `scene(engine, runner, submit, heard)` on an event loop; `heard` is what was said of each request."""

    async def play():
        engine, heard = Hand(), {}
        runner = Runner(engine, queue_depth=queue_depth, max_batch=max_batch)
        runner.start(asyncio.get_running_loop())

        def submit(name):
            heard[name] = []
            return runner.submit(Request(name, ()), heard[name].append, Unscored())

        try:
            await scene(engine, runner, submit, heard)
        finally:
            await asyncio.to_thread(runner.close)

    asyncio.run(play())


def test_answers_come_whole_and_the_next_takes_the_place():
    async def scene(engine, runner, submit, heard):
        submit("a"), submit("b")
        await until(lambda: "a" in engine.sinks)
        assert (runner.running, runner.waiting, "b" in engine.sinks) == (1, 1, False)
        engine.answer("a")
        await until(lambda: "b" in engine.sinks and len(heard["a"]) == 5)
        assert [type(what) for what in heard["a"]] == [Begun, Token, Token, Token, Ended]
        assert engine.left == ["a"]

    run(scene)


def test_a_full_line_refuses_and_a_cancelled_one_that_waits_gives_its_place_back_at_once():
    async def scene(engine, _runner, submit, heard):
        submit("a")
        await until(lambda: "a" in engine.sinks)
        waiting = submit("b")
        submit("c")
        with pytest.raises(QueueFullError):
            submit("d")
        waiting.cancel()
        await until(lambda: heard["b"])
        assert heard["b"] == [Failed("cancelled", "the client left")]
        submit("d")
        engine.answer("a")
        await until(lambda: "c" in engine.sinks)
        assert "b" not in engine.sinks

    run(scene)


def test_a_running_answer_that_is_cancelled_ends_before_its_next_step():
    async def scene(engine, _runner, submit, heard):
        ticket = submit("a")
        await until(lambda: "a" in engine.sinks and ticket.leave is not None)
        ticket.cancel()
        await until(lambda: heard["a"])
        assert (heard["a"], engine.left) == ([Failed("cancelled", "the client left")], ["a"])
        engine.answer("a")  # what the engine had on its way
        submit("b")
        await until(lambda: "b" in engine.sinks)
        assert len(heard["a"]) == 1

    run(scene)


def test_failures_are_told_apart_and_touch_nobody_else():
    async def scene(engine, runner, submit, heard):
        submit("refused"), submit("broken"), submit("well")
        await until(lambda: {"broken", "well"} <= set(engine.sinks))
        engine.sinks["broken"](RuntimeError("secret"))
        engine.answer("well")
        await until(lambda: len(heard["well"]) == 5 and heard["broken"] and heard["refused"])
        assert heard["refused"] == [Failed("invalid_request", "expected something else")]
        assert heard["broken"] == [Failed("internal_error", "the server failed")]
        await until(lambda: (runner.running, runner.waiting) == (0, 0))

    run(scene, max_batch=3)


def test_a_listener_that_raises_does_not_silence_the_others():
    async def scene(engine, runner, submit, heard):
        def raises(_):
            raise ValueError("a bug")

        runner.submit(Request("bad", ()), raises, Unscored())
        submit("good")
        await until(lambda: {"bad", "good"} <= set(engine.sinks))
        engine.answer("bad")
        engine.answer("good")
        await until(lambda: len(heard["good"]) == 5)

    run(scene, max_batch=2)


def test_the_event_loop_is_woken_once_for_all_that_came_while_a_step_was_scored():
    async def scene(engine, runner, submit, heard):
        slow, first, woken = Gated(), [], []
        runner.submit(Request("first", ()), first.append, slow)
        submit("second")
        await until(lambda: {"first", "second"} <= set(engine.sinks))
        loop = asyncio.get_running_loop()
        call, loop.call_soon_threadsafe = loop.call_soon_threadsafe, lambda *given: (woken.append(given), call(*given))
        engine.answer("first")
        assert slow.begun.wait(10)
        engine.answer("second")
        slow.gate.set()
        await until(lambda: len(first) == len(heard["second"]) == 5)
        assert [what.step.index for what in heard["second"][1:-1]] == [0, 1, 2]
        assert len(woken) <= 2  # for the step that was scored meanwhile, and for all others

    run(scene, max_batch=2)


def test_closing_fails_what_runs_and_what_waits():
    async def scene(engine, runner, submit, heard):
        submit("a"), submit("b")
        await until(lambda: "a" in engine.sinks)
        await asyncio.to_thread(runner.close)
        await until(lambda: heard["a"] and heard["b"])
        assert heard["a"] == heard["b"] == [Failed("cancelled", "the server is shutting down")]
        assert not runner.alive

    run(scene)
