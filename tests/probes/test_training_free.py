"""Published scores against their formulas, worked out by hand on small rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from introspect.types import StepTrace
from introspect_kernels import Segment
from introspect_probes.traces import Trace
from introspect_probes.training_free import (
    attention_score,
    lookback_ratio,
    mean_logprob,
    prelim_attention_score,
    rauq,
    visual_attention_score,
)


@pytest.fixture
def steps(traces: list[Trace]) -> list[StepTrace]:
    """Three tokens and a closing step with statistics set by hand."""
    template = next(s for s in traces[0].steps if s.heads is not None)
    assert template.heads is not None
    assert template.logits is not None
    made = []
    for index in range(4):
        shape = template.heads.lse.shape
        mass = np.zeros((*shape, 6), dtype=np.float32)
        mass[..., Segment.IMAGE], mass[..., Segment.TEMPLATE], mass[..., Segment.GENERATED] = 0.6, 0.2, 0.2
        retained = np.zeros_like(template.heads.retained)
        retained[..., Segment.IMAGE], retained[..., Segment.TEMPLATE], retained[..., Segment.GENERATED] = 6, 2, 1
        previous = np.full(shape, 0.1, dtype=np.float32)
        previous[:, 2] = 0.5
        heads = replace(
            template.heads, mass=mass, retained=retained, self_mass=np.full(shape, np.exp(-2), dtype=np.float32), previous_mass=previous
        )
        logits = replace(template.logits, logprob=-0.5 * index)
        made.append(replace(template, index=index, heads=heads, logits=logits if index < 3 else None, token_id=5 if index < 3 else -1))
    return made


def test_scores_follow_their_formulas(steps: list[StepTrace]) -> None:
    assert steps[0].heads is not None
    layers, heads = steps[0].heads.lse.shape
    assert mean_logprob(steps) == pytest.approx(-0.5)
    assert visual_attention_score(steps) == pytest.approx(3.0, rel=1e-5)
    assert lookback_ratio(steps) == pytest.approx(0.1 / (0.1 + 0.2), rel=1e-5)
    assert prelim_attention_score(steps) == pytest.approx(0.2, rel=1e-5)
    assert attention_score(steps) == pytest.approx(-2.0 * heads, rel=1e-5)
    confidence = [1.0]
    for logprob in (-0.5, -1.0):
        confidence.append(0.2 * np.exp(logprob) + 0.8 * 0.5 * confidence[-1])
    assert rauq(steps) == pytest.approx(1 - np.mean(np.log(confidence)), rel=1e-5)
    assert layers > 2
