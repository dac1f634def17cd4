"""Under the whole cache and under reduced ones other features may tell: each kind of cache has the probe that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from introspect_probes.claim_evaluation import class_prior
from introspect_probes.fitting import OWN, fit_by_cache, has_own, out_of_fold_by_cache
from introspect_probes.linear import BudgetedProbe, LinearProbe, sigmoid


def data(rows: int = 2400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Feature 0 tells under a whole cache, feature 1 under a reduced one, and each means the opposite under the other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6)).astype(np.float32)
    reduced = np.arange(rows) % 3 > 0
    logit = np.where(reduced, 2 * x[:, 1] - x[:, 0], 2 * x[:, 0] - x[:, 1])
    y = (rng.random(rows) < sigmoid(logit)).astype(np.int8)
    return x, y, np.array([f"g{i // 4}" for i in range(rows)]), reduced


def test_the_whole_cache_has_a_probe_of_its_own() -> None:
    both, strengths = fit_by_cache(*data())
    assert strengths.whole is not None
    fresh, labels, _, reduced = data(seed=1)
    own = ~reduced
    best = roc_auc_score(labels[own], 2 * fresh[own, 0] - fresh[own, 1])
    assert roc_auc_score(labels[own], both.logits(fresh, reduced)[own]) > best - 0.01
    assert roc_auc_score(labels[own], both.reduced.logits(fresh[own])[:, 0]) < best - 0.05  # that of all rows is torn between both
    np.testing.assert_array_equal(both.logits(fresh, reduced)[reduced], both.reduced.logits(fresh[reduced])[:, 0])


def test_out_of_fold_logits_are_those_of_both_probes() -> None:
    x, y, groups, reduced = data()
    own = ~reduced
    _, strengths = fit_by_cache(x, y, groups, reduced)
    held_out = out_of_fold_by_cache(x, y, groups, reduced, strengths)
    best = roc_auc_score(y[own], 2 * x[own, 0] - x[own, 1])
    assert best - 0.02 < roc_auc_score(y[own], held_out[own]) < best + 0.01


def test_too_few_of_a_label_under_the_whole_cache_leave_one_probe() -> None:
    x, y, groups, reduced = data()
    positive = np.flatnonzero(~reduced & (y == 1))
    few = np.ones(len(y), dtype=np.bool_)
    few[positive[OWN - 1 :]] = False
    assert not has_own(y[few], groups[few], reduced[few])
    both, strengths = fit_by_cache(x[few], y[few], groups[few], reduced[few])
    assert strengths.whole is None
    assert both.whole is both.reduced
    few[positive[OWN - 1]] = True
    assert has_own(y[few], groups[few], reduced[few])


@pytest.mark.parametrize("only", [False, True])
def test_one_kind_of_cache_leaves_one_probe(only: bool) -> None:
    x, y, groups, reduced = data()
    own = reduced == only
    both, _ = fit_by_cache(x[own], y[own], groups[own], reduced[own])
    assert both.whole is both.reduced


def test_the_class_prior_is_that_of_the_same_kind_of_cache() -> None:
    labels, reduced = np.array([1, 0, 0, 0, 1, 1], dtype=np.int8), np.array([False] * 4 + [True] * 2)
    assert class_prior(labels, reduced, np.array([True, False])).tolist() == [1.0, 0.25]
    assert class_prior(labels[4:], reduced[4:], np.array([False])).tolist() == [1.0]


def test_probes_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first, second = (
        LinearProbe(
            *(rng.random(4).astype(np.float32) for _ in range(2)), rng.random((1, 4)).astype(np.float32), rng.random(1).astype(np.float32)
        )
        for _ in range(2)
    )
    x = rng.standard_normal((5, 4))
    reduced = np.array([True, False, True, True, False])
    for both in (BudgetedProbe(first, second), BudgetedProbe.one(first)):
        save_file(both.arrays("risk"), tmp_path / "probes.safetensors")
        again = BudgetedProbe.from_arrays("risk", load_file(tmp_path / "probes.safetensors"))
        np.testing.assert_array_equal(again.logits(x, reduced), both.logits(x, reduced))
        assert (again.whole is again.reduced) is (both.whole is both.reduced)
    old = {f"risk/{key}": value for key, value in zip(("mean", "scale", "weight", "bias"), vars(second).values(), strict=True)}
    np.testing.assert_array_equal(BudgetedProbe.from_arrays("risk", old).logits(x, reduced), second.logits(x)[:, 0])
