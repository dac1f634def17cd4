"""Run by `test_triton_wiring.py` with TRITON_INTERPRET=1: the engine's decode loop with the GPU's kernels."""

from __future__ import annotations

import numpy as np

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.types import Budget, Request, SamplingParams, StepTrace
from introspect_kernels import HeadStats, Segment
from introspect_kernels.implementations import interpreted
from introspect_probes.worlds.world import get_world


def test_tokens_and_statistics_equal_the_cpu_path() -> None:
    assert interpreted()
    loaded = load_model()
    case = next(get_world("digits").cases(1, seed=1, pool="test"))
    # Prompts and answers of different lengths; one budget gives heads different lengths, the other does not.
    requests = [
        Request.ask(question, question, case.picture(), sampling=SamplingParams(max_tokens=2), budget=Budget(policy, ratio=ratio))
        for question, policy, ratio in (("what digit is red ?", "adakv", 0.2), ("add up row 2", "snapkv", 0.1))
    ]
    ours, theirs = (list(Engine(loaded, impl=impl).generate(requests)) for impl in ("triton", "vectorised"))
    assert len(ours) == len(theirs) >= 5
    assert len({step.position for step in ours if step.index == 0}) == 2
    assert all((step.heads.retained[..., Segment.IMAGE] > 0).any() for step in ours if step.heads is not None)
    kept = [step.heads.retained.sum(-1) for step in ours if step.heads is not None]  # [layers, KV heads]
    assert any(len(np.unique(layer)) > 1 for heads in kept for layer in heads)
    for step, expected in zip(ours, theirs, strict=True):
        _assert_same(step, expected)


def _assert_same(step: StepTrace, expected: StepTrace) -> None:
    assert (step.index, step.position, step.token_id, step.text) == (expected.index, expected.position, expected.token_id, expected.text)
    if expected.logits is not None:
        assert step.logits is not None
        assert abs(step.logits.logprob - expected.logits.logprob) < 1e-4
    assert (step.heads is None) == (expected.heads is None)
    if step.heads is None or expected.heads is None:
        return
    for name in HeadStats._fields:
        a, b = getattr(step.heads, name), getattr(expected.heads, name)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True, err_msg=name)
