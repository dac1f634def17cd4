"""Probes find what is there and nothing where nothing is; calibration and sets against mature judges."""

from __future__ import annotations

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from introspect_probes.errors import FitError
from introspect_probes.fitting import balancing_weights, class_thresholds, fit_logistic, fit_platt, fit_temperature, out_of_fold_logits
from introspect_probes.interventions import strategy_of
from introspect_probes.linear import sigmoid
from introspect_probes.metrics import ClusterBootstrap, expected_calibration_error, interval, weighted_auroc
from introspect_probes.risk_fit import equal_shares


def data(rows: int = 1200, features: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which two matter, labels, and groups of four rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    y = (rng.random(rows) < 1 / (1 + np.exp(-(2 * x[:, 0] - 1.5 * x[:, 3])))).astype(np.int8)
    return x, y, np.array([f"g{i // 4}" for i in range(rows)])


def test_the_probe_finds_what_matters_and_drops_the_rest() -> None:
    x, y, groups = data()
    probe, _ = fit_logistic(x, y, groups)
    weight = np.abs(probe.weight[0])
    assert set(np.argsort(-weight)[:2]) == {0, 3}
    fresh, labels, _ = data(seed=1)
    best = roc_auc_score(labels, 2 * fresh[:, 0] - 1.5 * fresh[:, 3])
    assert roc_auc_score(labels, probe.logits(fresh)[:, 0]) > best - 0.01


def test_shuffled_labels_teach_nothing() -> None:
    x, y, groups = data()
    shuffled = np.random.default_rng(2).permutation(y)
    fresh, labels, _ = data(seed=3)
    probe, _ = fit_logistic(x, shuffled, groups)
    assert abs(roc_auc_score(labels, probe.logits(fresh)[:, 0]) - 0.5) < 0.08


def test_out_of_fold_logits_never_saw_their_group() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat([f"g{i}" for i in range(60)], 5)
    y = np.repeat(rng.integers(0, 2, 60), 5).astype(np.int8)
    x = np.eye(60, dtype=np.float32)[np.repeat(np.arange(60), 5)]  # each group is known by a feature of its own
    assert abs(roc_auc_score(y, out_of_fold_logits(x, y, groups, 1.0)) - 0.5) < 0.2
    assert roc_auc_score(y, fit_logistic(x, y, groups, strengths=(1.0,))[0].logits(x)[:, 0]) > 0.9


def test_platt_undoes_a_known_distortion() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, 20_000)
    y = (rng.random(20_000) < sigmoid(0.5 * logits - 1)).astype(np.int8)
    calibrated = fit_platt(logits, y, "test")
    assert -calibrated.a == pytest.approx(0.5, abs=0.03)
    assert -calibrated.b == pytest.approx(-1, abs=0.05)


def test_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1, (8000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.array([rng.choice(4, p=row) for row in p], dtype=np.int8)
    assert fit_temperature(3 * logits, y) == pytest.approx(3, rel=0.1)


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")  # one class at a time is the point
def test_thresholds_are_those_of_mapie_within_a_class() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((900, 3))
    y = (x[:, 0] + rng.normal(0, 1, 900) > 0).astype(int)
    model = LogisticRegression().fit(x[:300], y[:300])
    held, fresh = slice(300, 600), slice(600, 900)
    thresholds = class_thresholds(model.predict_proba(x[held]), y[held].astype(np.int8), alpha=0.1)
    for label in (0, 1):
        own = y[held] == label
        judge = SplitConformalClassifier(FrozenEstimator(model), confidence_level=0.9, conformity_score="lac")
        judge.conformalize(x[held][own], y[held][own])
        theirs = judge.predict_set(x[fresh])[1][:, label, 0]
        ours = model.predict_proba(x[fresh])[:, label] >= thresholds[label]
        assert (ours == theirs).mean() > 0.99
        truly = y[fresh] == label
        assert ours[truly].mean() > 0.82


def test_balancing_makes_both_labels_weigh_alike_in_each_cell() -> None:
    cells = ["a"] * 10 + ["b"] * 10
    labels = np.array([1] * 2 + [0] * 8 + [1] * 5 + [0] * 5, dtype=np.int8)
    weights = balancing_weights(cells, labels)
    assert weights[:10][labels[:10] == 1].sum() == pytest.approx(weights[:10][labels[:10] == 0].sum())
    assert weights[10:].tolist() == [1.0] * 10


def test_whole_and_reduced_caches_count_the_same_in_the_internal_fit() -> None:
    reduced = np.array([True] * 9 + [False] * 3)
    weights = equal_shares(reduced)
    assert weights[reduced].sum() == pytest.approx(weights[~reduced].sum())
    assert weights.sum() == pytest.approx(12)
    assert equal_shares(~reduced & reduced).tolist() == [1.0] * 12


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (np.zeros(30, dtype=np.int8), [str(i) for i in range(30)], "all 30 labels are 0"),
        (np.array([0, 1] * 15, dtype=np.int8), ["a", "b"] * 15, "2 groups"),
        (np.zeros(0, dtype=np.int8), [], "no labelled rows"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labels: np.ndarray, groups: list[str], message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_logistic(np.zeros((len(labels), 2), dtype=np.float32), labels, np.array(groups))


def test_features_that_are_not_finite_are_named_by_row() -> None:
    x, y, groups = data(40)
    x[17, 2] = np.nan
    with pytest.raises(FitError, match="row 17"):
        fit_logistic(x, y, groups)


def test_auroc_equals_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(8)
    scores, labels, weights = rng.integers(0, 6, 300).astype(float), rng.integers(0, 2, 300), rng.integers(0, 4, 300).astype(float)
    assert weighted_auroc(scores, labels, weights) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


def test_cluster_bootstrap_is_wider_than_rows_would_be() -> None:
    rng = np.random.default_rng(9)
    effect = rng.standard_normal(50)
    scores = np.repeat(effect, 20) + 0.1 * rng.standard_normal(1000)
    labels = np.repeat((effect + rng.standard_normal(50) > 0).astype(int), 20)
    clustered = interval(*ClusterBootstrap(np.repeat(np.arange(50).astype(str), 20)).auroc(scores, labels))
    naive = interval(*ClusterBootstrap(np.arange(1000).astype(str)).auroc(scores, labels))
    assert clustered.value == naive.value
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_macro_auroc_is_blind_to_what_tells_strata_apart() -> None:
    strata = np.repeat(["a", "b"], 500)
    labels = np.r_[np.tile([0, 0, 0, 1], 125), np.tile([1, 1, 1, 0], 125)]
    scores = (strata == "b").astype(float)
    bootstrap = ClusterBootstrap(np.arange(1000).astype(str), resamples=10)
    assert bootstrap.auroc(scores, labels)[0] > 0.7
    assert bootstrap.auroc(scores, labels, strata)[0] == pytest.approx(0.5)


def test_calibration_error_of_a_calibrated_and_of_a_shifted_forecast() -> None:
    rng = np.random.default_rng(10)
    p = rng.uniform(0.05, 0.95, 20_000)
    y = (rng.random(20_000) < p).astype(int)
    assert expected_calibration_error(p, y) < 0.01
    assert expected_calibration_error(np.clip(p + 0.1, 0, 1), y) == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize(
    ("shifts", "source", "state"),
    [
        ({"evidence": 4.0, "distractors": 0.1}, "image", "perceiving"),
        ({"evidence": 4.0, "distractors": 3.0}, "image", None),
        ({"evidence": 0.3, "distractors": 0.0}, "image", None),
        ({"evidence": 1.0, "distractors": 0.0, "context": 3.0}, "context", "reading"),
        ({"evidence": 2.0, "distractors": 0.0, "context": 3.0}, "context", None),
        ({"evidence": 0.2, "distractors": 0.1, "prefix": 2.0}, "image", "self-conditioned"),
        ({"evidence": 0.0}, "memory", "recalling"),
        ({"evidence": 0.1, "context": 0.2}, "guess", "guessing"),
        ({"evidence": 2.0}, "guess", "perceiving"),
    ],
)
def test_states_follow_from_causes(shifts: dict[str, float], source: str, state: str | None) -> None:
    assert strategy_of(shifts, source) == state
