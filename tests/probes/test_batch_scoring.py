"""Batches say what single tokens say, whatever is absent and however heads are grouped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from introspect.types import HeadRow
from introspect_probes.batch_scoring import BatchScorer, ColumnReader, TokenBatch
from introspect_probes.features import LOGITS, PLACE, Shape, TokenFeatures, head_feature_names, head_features
from introspect_probes.linear import BudgetedProbe
from introspect_probes.probe_set import answer_features, answer_tail
from introspect_probes.scoring_benchmark import random_probes, random_prompt, random_row, scoring_benchmark

SHAPES = (Shape(3, 6, 2), Shape(2, 5, 5), Shape(4, 3, 1))


def batch_of(shape: Shape, size: int, rng: np.random.Generator) -> tuple[TokenBatch, list[TokenFeatures]]:
    """A batch, and the features of its tokens one by one."""
    prompts = [random_prompt(shape, rng) for _ in range(size)]
    prompts[0].retention[0, 0] = np.nan
    prompts[1] = replace(prompts[1], budget=replace(prompts[1].budget, effective=100.0))
    rows = [[random_row(shape, rng) for _ in range(size)] for _ in range(2)]
    rows[0][0].lse[0, 0] = -np.inf
    positions = rng.integers(0, 900, size)
    logits = rng.standard_normal((size, len(LOGITS))).astype(np.float32)
    place = rng.standard_normal((size, len(PLACE))).astype(np.float32)
    kinds = [("digit", "color", "")[i % 3] for i in range(size)]
    batch = TokenBatch(HeadRow.joined(rows[0]), HeadRow.joined(rows[1]), positions, logits, place, kinds, prompts)
    single = [TokenFeatures(head_features(rows[0][i], rows[1][i], prompts[i], int(positions[i])), logits[i], place[i]) for i in range(size)]
    return batch, single


@pytest.mark.parametrize("shape", SHAPES)
def test_every_column_is_the_one_of_the_whole_feature_vector(shape: Shape) -> None:
    batch, single = batch_of(shape, 5, np.random.default_rng(0))
    count = len(head_feature_names(shape))
    whole = np.stack([s.heads for s in single])
    np.testing.assert_allclose(ColumnReader(shape, np.arange(count)).read(batch), whole, rtol=1e-6, atol=1e-7)
    some = np.sort(np.random.default_rng(1).choice(count, 40, replace=False))
    np.testing.assert_allclose(ColumnReader(shape, some).read(batch), whole[:, some], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_signals_are_those_of_single_tokens(shape: Shape) -> None:
    rng = np.random.default_rng(2)
    probes, other = random_probes(shape, 30, rng), random_probes(shape, 30, rng)
    assert probes.claims is not None
    assert probes.strategy is not None
    assert other.claims is not None
    internal = BudgetedProbe(probes.claims.internal.whole, other.claims.internal.whole)
    confidence = BudgetedProbe(probes.confidence.whole, other.confidence.whole)
    probes = replace(probes, claims=replace(probes.claims, internal=internal), confidence=confidence)
    assert probes.claims is not None
    batch, single = batch_of(shape, 6, rng)
    scorer = BatchScorer(probes)
    signals = scorer.score(batch)
    risks = [probes.claims.risk(f, k, p).risk for f, k, p in zip(single, batch.kinds, batch.prompts, strict=True)]
    np.testing.assert_allclose(signals.risk, risks, atol=1e-6)
    np.testing.assert_allclose(signals.strategy, [probes.strategy.probabilities(f.heads) for f in single], atol=1e-6)
    # the six tokens as one answer
    prompt = batch.prompts[0]
    tail = answer_tail(single[-1].logits, 6, risks, list(batch.kinds), prompt)
    ours = scorer.confidence(signals.confidence_heads.sum(0, keepdims=True), np.array([6]), tail[None], np.array([False]))
    logit = probes.confidence.logits(answer_features(single, risks, list(batch.kinds), prompt), False)
    assert ours[0] == pytest.approx(float(probes.confidence_calibration(logit, False)), abs=1e-5)


def test_the_benchmark_says_what_it_timed() -> None:
    row = scoring_benchmark(Shape(2, 4, 2), batch=3, weights=10, repeats=5)
    (case,) = row["cases"]
    assert (case["batch"], case["weights_per_probe"], case["head_features"]) == (3, 10, len(head_feature_names(Shape(2, 4, 2))))
    assert 0 < case["milliseconds_per_token"]["p5"] <= case["milliseconds_per_token"]["median"] <= case["milliseconds_per_token"]["p95"]
    assert "date" in row["provenance"]
