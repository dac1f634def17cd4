"""Hidden states of decode steps are those that the logits came from, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from introspect.engine import Engine
from introspect.errors import ModelLoadError
from introspect.hidden import hidden_states
from introspect.loading import load_model
from introspect.types import Budget, Request, SamplingParams

QUESTIONS = ("what digit is at row 1 column 1 ?", "describe everything", "is there a 7 ?")


@pytest.fixture(scope="module")
def loaded():
    return load_model()


def requests():
    budgets = (Budget(), Budget("random", ratio=0.3), Budget("snapkv", ratio=0.3))
    picture = Image.new("RGB", (96, 96), (244, 241, 234))
    return [
        Request.ask(f"q{n}", q, picture, sampling=SamplingParams(max_tokens=4), budget=b)
        for n, (q, b) in enumerate(zip(QUESTIONS, budgets, strict=True))
    ]


def test_last_layer_gives_the_logprobs_of_its_own_step(loaded):
    with hidden_states(loaded) as rows:
        steps = [s for s in Engine(loaded).generate(requests()) if s.logits is not None]
    assert len({s.prompt.request_id for s in steps}) == len(QUESTIONS)
    for step in steps:
        states = torch.from_numpy(rows[step.prompt.request_id, step.position]).float()
        assert states.shape == (loaded.num_layers, 192)
        with torch.inference_mode():
            logprobs = torch.log_softmax(loaded.model.lm_head(loaded.language_model.norm(states[-1])), -1)
        # fp16 rounds the states; a neighbour's row or another step's would be off by nats
        assert float(logprobs[step.token_id]) == pytest.approx(step.logits.logprob, abs=0.05)
        assert logprobs.topk(3).values.tolist() == pytest.approx(step.logits.top_logprobs[:3], abs=0.1)


def test_nothing_is_kept_outside_and_answers_do_not_change(loaded):
    with hidden_states(loaded) as rows:
        inside = [(s.token_id, s.position) for s in Engine(loaded).generate(requests())]
    count = len(rows)
    outside = [(s.token_id, s.position) for s in Engine(loaded).generate(requests())]
    assert len(rows) == count > 0
    assert inside == outside


def test_a_model_whose_layers_cannot_be_found_is_refused(loaded):
    with pytest.raises(ModelLoadError, match="expected a language model with 7 `layers`"), hidden_states(replace(loaded, num_layers=7)):
        pass
