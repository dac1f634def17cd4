"""What is recorded on request for baselines: hidden states and sampled answers; and that policies draw anew for each case."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from introspect.types import Budget
from introspect_probes.case_budget import budget_for
from introspect_probes.record import record
from introspect_probes.traces import read_manifest, read_traces
from introspect_probes.worlds.world import get_world


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    cases = get_world("digits").cases(6, seed=8, pool="test", kinds=["digit_at", "count"])
    record(cases, engine, folder, budgets=[Budget(), Budget("random", ratio=0.3)], hidden=True, samples=4)
    return folder


def test_hidden_states_lie_beside_the_rows_they_are_of(engine, folder):
    for trace in read_traces(folder):
        queries = [s for s in trace.steps if s.heads is not None]
        assert trace.hidden.shape == (len(queries), engine.loaded.num_layers, 192)
        assert trace.hidden.dtype == np.float16
        for step, states in zip(queries, trace.hidden, strict=True):
            if step.logits is None:
                continue
            with torch.inference_mode():
                last = engine.loaded.language_model.norm(torch.tensor(states[-1]).float())
                logprobs = torch.log_softmax(engine.loaded.model.lm_head(last), -1)
            assert float(logprobs[step.token_id]) == pytest.approx(step.logits.logprob, abs=0.05)


def test_agreement_is_a_share_of_the_samples_and_falls_with_doubt(folder):
    traces = list(read_traces(folder))
    assert read_manifest(folder)["samples"] == 4
    assert {t.agreement * 4 for t in traces} <= {0, 1, 2, 3, 4}
    surest = max(traces, key=lambda t: t.steps[0].logits.logprob)
    assert surest.agreement == 1
    # at temperature 1 a word of probability p is drawn again with probability p
    expected = np.mean([np.exp(sum(s.logits.logprob for s in t.steps if s.logits is not None)) for t in traces])
    assert np.mean([t.agreement for t in traces]) == pytest.approx(expected, abs=0.2)


def test_without_being_asked_for_neither_is_kept(traces):
    assert all(t.hidden is None and t.agreement is None for t in traces)


def test_cases_of_one_length_lose_different_entries(folder):
    kept = [t.prompt.retention for t in read_traces(folder) if t.condition == "random@30%"]
    assert len({r.tobytes() for r in kept}) == len(kept)
    first, second = (budget_for(name, Budget("random", ratio=0.3)) for name in ("a", "b"))
    assert first.seed != second.seed
    assert first == budget_for("a", Budget("random", ratio=0.3))
