"""Steps come to who follows; and whatever becomes of the engine, who follows is told."""

from __future__ import annotations

import queue

import pytest

from introspect.async_engine import AsyncEngine
from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.types import Budget, Request, SamplingParams


class Dies:
    """A scheduler that breaks at its first step, and once more when it is to end what runs."""

    has_work, running, decoding, kv_bytes = True, 0, 0, None

    def submit(self, _prompt):
        return object()

    def step(self):
        raise RuntimeError("the first failure")

    def close(self):
        raise RuntimeError("the second one")


@pytest.fixture
def engine(tiny_llava):
    made = AsyncEngine(Engine(tiny_llava.loaded, max_batch=3))
    yield made
    made.close()


def ask(**options):
    return Request.ask("r", "hello", sampling=SamplingParams(max_tokens=3), **options)


def test_each_step_is_heard_and_letting_go_frees_everything(engine):
    heard = queue.SimpleQueue()
    leave = engine.follow(ask(), heard.put)
    steps = [heard.get(timeout=30) for _ in range(4)]
    assert [step.finish_reason for step in steps] == [None, None, None, "length"]
    leave()
    assert heard.empty()
    assert engine.kv_bytes.allocated == 0


def test_what_cannot_be_served_is_refused_before_anything_is_heard(engine):
    heard = queue.SimpleQueue()
    with pytest.raises(RequestError):
        engine.follow(ask(budget=Budget("no such policy", entries=8)), heard.put)
    assert heard.empty()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_twice_still_tells_and_the_next_request_is_served(engine, monkeypatch):
    heard = queue.SimpleQueue()
    with monkeypatch.context() as broken:
        broken.setattr(engine._engine, "scheduler", Dies)
        engine.follow(ask(), heard.put)
        assert str(heard.get(timeout=30)) == "the first failure"
    engine.follow(ask(), heard.put)
    assert heard.get(timeout=30).index == 0
