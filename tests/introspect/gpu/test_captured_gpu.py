"""Decode steps as CUDA graphs: what a graph gives is what its operators give, to the bit, while requests join and leave."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from introspect.captured import Captured
from introspect.engine import Engine
from introspect.loading import LoadedModel, load_model
from introspect.types import Budget, Request, SamplingParams, StepTrace
from introspect_probes.worlds.world import get_world

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(device="cuda", dtype=torch.bfloat16)


def requests() -> list[Request]:
    """Of several lengths, budgets and ways to choose; one without statistics, one that outgrows its slack."""
    case = next(get_world("digits").cases(1, seed=1, pool="test"))
    budgets = (Budget(), Budget("coverage", ratio=0.3), Budget("random", ratio=0.5, seed=3), Budget("snapkv", ratio=0.2), Budget())
    made = []
    for number, budget in enumerate(budgets):
        sampling = SamplingParams(max_tokens=12 + 9 * number, temperature=float(number % 2), top_p=0.9, seed=number)
        question = "describe everything" if number else "what digit is red ?"
        request = Request.ask(f"r{number}", question, case.picture(), sampling=sampling, budget=budget)
        made.append(Request(request.id, request.messages, sampling, budget, signals=number != 2))
    return made


def answers(loaded: LoadedModel, capture: bool) -> list[list[StepTrace]]:
    """Requests join while others run, and end at different times."""
    engine = Engine(loaded, max_batch=4, slack=8, capture=capture)
    scheduler = engine.scheduler()
    waiting = [engine.encode(request) for request in requests()]
    order = [scheduler.submit(waiting.pop(0))]
    found: dict[object, list[StepTrace]] = {order[0]: []}
    steps = 0
    while scheduler.has_work or waiting:
        steps += 1
        if waiting and steps % 5 == 0:
            order.append(scheduler.submit(waiting.pop(0)))
            found[order[-1]] = []
        for answer, event in scheduler.step():
            assert isinstance(event, StepTrace), event
            found[answer].append(event)
    return [found[answer] for answer in order]


def test_graphs_give_what_their_operators_give(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
    # Both pad their batches: the shapes of matrix products, and so their rounding, are the same.
    captured = answers(loaded, capture=True)
    assert len(replays) > 20
    monkeypatch.setattr(Captured, "__call__", lambda self, forces, samples: self._compute(forces, samples))
    plain = answers(loaded, capture=True)
    for ours, theirs in zip(captured, plain, strict=True):
        assert len(ours) == len(theirs)
        for step, expected in zip(ours, theirs, strict=True):
            assert (step.token_id, step.text, step.logits) == (expected.token_id, expected.text, expected.logits)
            assert (step.heads is None) == (expected.heads is None)
            if step.heads is not None and expected.heads is not None:
                for block in fields(step.heads):
                    np.testing.assert_array_equal(getattr(step.heads, block.name), getattr(expected.heads, block.name), err_msg=block.name)


def test_without_capture_answers_have_the_same_shape(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", None)  # none is made
    assert all(answer[-1].finish_reason is not None for answer in answers(loaded, capture=False))
