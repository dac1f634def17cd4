"""A recorded forward call gives what the modules give, to the bit, and is passed over where it would miss something."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from families import TinyModel

from introspect.attention import ablated, active
from introspect.engine import Engine
from introspect.forward import Forward, _Echo
from introspect.hidden import hidden_states
from introspect.scheduler import Scheduler
from introspect.types import StepTrace


def answers(tiny: TinyModel, forward: Forward) -> list[StepTrace]:
    """Three answers of different lengths, decoded together and to their ends alone."""
    scheduler = Scheduler(tiny.loaded, Engine(tiny.loaded).limits, forward=forward)
    order = [scheduler.submit(tiny.prompt(seed, max_tokens=3 + 3 * seed)) for seed in range(3)]
    found: dict[Any, list[StepTrace]] = {answer: [] for answer in order}
    while scheduler.has_work:
        for answer, event in scheduler.step():
            assert isinstance(event, StepTrace)
            found[answer].append(event)
    return [step for answer in order for step in found[answer]]


def assert_equal(ours: list[StepTrace], theirs: list[StepTrace]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.token_id, one.text, one.logits, one.finish_reason) == (other.token_id, other.text, other.logits, other.finish_reason)
        assert (one.heads is None) == (other.heads is None)
        if one.heads is not None and other.heads is not None:
            for block in fields(one.heads):
                np.testing.assert_array_equal(getattr(one.heads, block.name), getattr(other.heads, block.name), err_msg=block.name)


def recorded(forward: Forward) -> list[int]:
    """The batch sizes that run from a recording."""
    return sorted(shape[-1] for shape, call in forward._recorded.items() if call != forward.eager)


def test_every_family_is_recorded_and_gives_the_same(family: TinyModel) -> None:
    forward = Forward(family.loaded, record_after=1)
    assert_equal(answers(family, forward), answers(family, Forward(family.loaded, record_after=None)))
    assert recorded(forward) == [1, 2, 3]


def test_hooks_and_silenced_heads_are_not_passed_by(tiny_llava: TinyModel) -> None:
    forward, plain = Forward(tiny_llava.loaded, record_after=0), Forward(tiny_llava.loaded, record_after=None)
    answers(tiny_llava, forward)
    assert 3 in recorded(forward)
    with hidden_states(tiny_llava.loaded) as rows:
        steps = answers(tiny_llava, forward)
    assert {(step.prompt.request_id, step.position) for step in steps if step.heads is not None} == set(rows)
    silenced = torch.zeros(tiny_llava.loaded.num_layers, tiny_llava.loaded.num_heads, dtype=torch.bool)
    silenced[:2] = True
    with ablated(silenced):
        ours, theirs = answers(tiny_llava, forward), answers(tiny_llava, plain)
    assert_equal(ours, theirs)
    assert [step.logits for step in ours] != [step.logits for step in steps]


class _Reads(torch.nn.Module):
    """A head that looks at a number: a recording would do for ever what it did once."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        factor = 2.0 if float(hidden.flatten()[0]) > 0 else 1.0
        logits: torch.Tensor = self.head(hidden) * factor
        return logits


def test_a_model_whose_host_reads_a_value_runs_module_by_module(tiny_llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(tiny_llava, Forward(tiny_llava.loaded, record_after=None))
    monkeypatch.setitem(tiny_llava.loaded.model._modules, "lm_head", _Reads(tiny_llava.loaded.model.lm_head))
    forward = Forward(tiny_llava.loaded, record_after=0)
    ours = answers(tiny_llava, forward)
    assert recorded(forward) == []
    assert_equal(ours, answers(tiny_llava, Forward(tiny_llava.loaded, record_after=None)))
    assert [step.logits for step in ours] != [step.logits for step in plain]


def test_a_recording_that_does_not_give_the_same_is_refused(
    tiny_llava: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, seen = Forward(tiny_llava.loaded, record_after=0), list[int]()
    embed = tiny_llava.loaded.model.get_input_embeddings()

    def counts(token: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        found: torch.Tensor = embed(token) * len(seen)  # Python's own state: a recording does not see it
        return found

    monkeypatch.setattr(forward, "_embed", counts)
    with torch.inference_mode(), active(_Echo()):
        forward(torch.tensor([20, 21]), torch.tensor([5, 9]))
    assert recorded(forward) == []
    assert "do not give what its modules give" in caplog.text
