"""Published scores against their formulas, worked out by hand on small rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from introspect.types import HeadRow, StepTrace
from introspect_kernels import HeadStats, Segment
from introspect_probes.traces import Trace
from introspect_probes.training_free import (
    SCORES,
    Words,
    attention_entropy,
    attention_score,
    future_attention_influence,
    head_consensus,
    image_output_share,
    lookback_ratio,
    max_entropy,
    mean_logprob,
    perplexity,
    prelim_attention_score,
    rauq,
    retrieval_share,
    visual_attention_score,
    waad,
    window_retention,
)


def changed(row: HeadRow | None, **arrays: NDArray[Any]) -> HeadRow:
    """The row with other values of some statistics."""
    assert row is not None
    return HeadRow.of({name: getattr(row, name) for name in HeadStats._fields} | arrays)


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
        looked_at = np.full(shape, 3, dtype=np.int32)
        looked_at[:, :2] = 1 + index  # two heads look at the token that was just emitted, or past the prompt
        far, near = np.full(shape, 30, dtype=np.float32), np.full(shape, 10, dtype=np.float32)
        far[0, :], near[0, :] = 2, 1.5
        heads = changed(
            template.heads, mass=mass, retained=retained, self_mass=np.full(shape, np.exp(-2), dtype=np.float32), previous_mass=previous,
            argmax_position=looked_at, mean_distance=far, windowed_distance=near, entropy=np.full(shape, np.log(3), dtype=np.float32),
            image_output_share=np.full(shape, 0.25 + 0.1 * index, dtype=np.float32),
        )  # fmt: skip
        logits = replace(template.logits, logprob=-0.5 * index)
        made.append(replace(template, index=index, heads=heads, logits=logits if index < 3 else None, token_id=5 if index < 3 else -1))
    ids = np.array([9, 5, 7, 7], dtype=np.int64)  # token 5, which is said each time, stands at position 1
    retention = np.array([0.5, 1.0, np.nan, 0.75], dtype=np.float32).reshape(2, 2, 1)
    prompt = replace(template.prompt, token_ids=ids, retention=retention)
    return [replace(step, prompt=prompt) for step in made]


def test_scores_follow_their_formulas(steps: list[StepTrace]) -> None:
    assert steps[0].heads is not None
    layers, heads = steps[0].heads.lse.shape
    assert mean_logprob(Words(steps)) == pytest.approx(-0.5)
    assert visual_attention_score(Words(steps)) == pytest.approx(3.0, rel=1e-5)
    assert lookback_ratio(Words(steps)) == pytest.approx(0.1 / (0.1 + 0.2), rel=1e-5)
    assert prelim_attention_score(Words(steps)) == pytest.approx(0.2, rel=1e-5)
    assert attention_score(Words(steps)) == pytest.approx(-2.0 * heads, rel=1e-5)
    confidence = [1.0]
    for logprob in (-0.5, -1.0):
        confidence.append(0.2 * np.exp(logprob) + 0.8 * 0.5 * confidence[-1])
    assert rauq(Words(steps)) == pytest.approx(1 - np.mean(np.log(confidence)), rel=1e-5)
    assert layers > 2


def test_further_scores_follow_their_formulas(steps: list[StepTrace]) -> None:
    assert steps[0].heads is not None
    layers, heads = steps[0].heads.lse.shape
    assert perplexity(Words(steps)) == pytest.approx(np.exp(0.5))
    assert max_entropy(Words(steps)) == pytest.approx(max(s.logits.entropy for s in steps if s.logits is not None))
    assert attention_entropy(Words(steps)) == pytest.approx(np.log(3) / np.log(9), rel=1e-5)  # nine entries are retained
    # at t = 2 the two heads look at 3, like all others; before that they are a minority
    assert head_consensus(Words(steps)) == pytest.approx((2 * (heads - 2) / heads + 1) / 3, rel=1e-5)
    assert image_output_share(Words(steps)) == pytest.approx(0.35, rel=1e-5)
    assert retrieval_share(Words(steps)) == pytest.approx((2 / heads) / 3, rel=1e-5)  # only at t = 0 do they look at position 1
    # three tenths of the heads look nearest; the first layer's come first, any more are far
    local = round(0.3 * layers * heads)
    near = min(local, heads)
    assert waad(Words(steps)) == pytest.approx((1.5 * near + 10 * (local - near)) / local, rel=1e-5)
    assert window_retention(Words(steps)) == pytest.approx(0.75, rel=1e-5)


def test_fai_is_the_mean_over_words_and_the_heads_that_look_farthest(steps: list[StepTrace]) -> None:
    assert steps[0].heads is not None
    layers, kv_heads = steps[0].heads.retained.shape[:2]
    group = steps[0].heads.lse.shape[1] // kv_heads
    assert group > 1
    far = np.full((layers, kv_heads, group), 5.0, dtype=np.float32)
    chosen = round(0.3 * layers * kv_heads)
    for number in range(chosen):  # of a KV head the mean counts: its last query head alone looks far
        far[layers - 1 - number // kv_heads, number % kv_heads, -1] = 90.0
    influence = np.full((3, layers, kv_heads), 0.9, dtype=np.float32)
    for number in range(chosen):
        influence[:, layers - 1 - number // kv_heads, number % kv_heads] = [0.01, 0.03, np.nan]  # no query comes ten tokens after the last
    reading = [replace(s, heads=changed(s.heads, mean_distance=far.reshape(layers, -1))) for s in steps if s.heads is not None]
    # how far the row looks that predicts the first word is of no account: it reads none of the answer's
    reading[0] = replace(reading[0], heads=changed(reading[0].heads, mean_distance=-1e6 * far.reshape(layers, -1)))
    told = [*reading[:-1], replace(reading[-1], influence=influence)]
    assert future_attention_influence(Words(told)) == pytest.approx(0.02, rel=1e-5)
    control = [*told[:1], replace(told[1], is_special=True), *told[2:]]
    assert future_attention_influence(Words(control)) == pytest.approx(0.01, rel=1e-5)  # a control token is no word
    influence[:, layers - 1] = np.nan  # a layer whose window is too short for any
    known = kv_heads * (layers - 1)
    rest = chosen - min(chosen, kv_heads)
    expected = (0.02 * rest + 0.9 * (round(0.3 * known) - rest)) / round(0.3 * known)
    assert future_attention_influence(Words(told)) == pytest.approx(expected, rel=1e-5)


def test_fai_is_absent_where_nothing_was_kept_or_nobody_came_later(steps: list[StepTrace]) -> None:
    assert steps[0].heads is not None
    assert np.isnan(future_attention_influence(Words(steps)))
    nobody = np.full((3, *steps[0].heads.retained.shape[:2]), np.nan, dtype=np.float32)
    assert np.isnan(future_attention_influence(Words([*steps[:-1], replace(steps[-1], influence=nobody)])))


def test_what_an_answer_does_not_allow_is_not_a_number(steps: list[StepTrace]) -> None:
    blind = [replace(s, heads=changed(s.heads, image_output_share=np.full_like(s.heads.lse, np.nan))) for s in steps if s.heads is not None]
    assert np.isnan(image_output_share(Words(blind)))
    prompt = replace(steps[0].prompt, retention=np.full((2, 2, 1), np.nan, dtype=np.float32))
    assert np.isnan(window_retention(Words([replace(s, prompt=prompt) for s in steps])))


def test_every_score_has_a_source_and_a_direction() -> None:
    assert all(e.sign in (-1, 1) and e.source and e.title for e in SCORES.values())
    assert len({e.title for e in SCORES.values()}) == len(SCORES)
