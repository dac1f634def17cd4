"""Selective prediction against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from introspect_probes.metrics import probability_metrics, recall_at, reliability
from introspect_probes.selective import augrc, aurc, errors_among, prr, risk_coverage


def test_a_worked_example() -> None:
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    coverage, risk = risk_coverage(confidence, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(confidence, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert augrc(confidence, correct) == pytest.approx((0 + 1 + 2 + 3) / 2 / 16)  # trapezoids over errors 0 0 1 1 2, by 4 squared
    best = (0 + 0 + 1 / 3 + 1 / 2) / 4
    assert prr(confidence, correct) == pytest.approx((0.5 - aurc(confidence, correct)) / (0.5 - best))


def test_ties_are_what_random_orders_give_on_average() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(0, 4, 60).astype(float), rng.integers(0, 2, 60)
    drawn = [errors_among(confidence + rng.uniform(0, 0.5, 60), correct) for _ in range(4000)]
    np.testing.assert_allclose(errors_among(confidence, correct), np.mean(drawn, axis=0), atol=0.15)


def test_the_ends_are_perfect_random_and_reversed() -> None:
    correct = np.r_[np.ones(80, dtype=int), np.zeros(20, dtype=int)]
    assert prr(correct.astype(float), correct) == pytest.approx(1)
    assert augrc(correct.astype(float), correct) == pytest.approx(0.2**2 / 2)
    assert prr(np.zeros(100), correct) == pytest.approx(0)
    assert aurc(np.zeros(100), correct) == pytest.approx(0.2)
    assert prr(-correct.astype(float), correct) < 0
    assert np.isnan(prr(np.arange(3.0), np.ones(3, dtype=int)))


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_recall_at_a_false_positive_rate_is_the_roc_curve_s(rate: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 3000)
    scores = rng.normal(labels, 1)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert recall_at(scores, labels, rate) == pytest.approx(tpr[fpr <= rate].max(), abs=1e-12)


def test_intervals_hold_the_value_and_widen_with_clusters() -> None:
    rng = np.random.default_rng(2)
    p = np.repeat(rng.uniform(0.1, 0.9, 60), 10)
    y = np.repeat((rng.random(60) < p[::10]).astype(int), 10)
    own = probability_metrics(p, y, np.repeat(np.arange(60).astype(str), 10), selective=True)
    naive = probability_metrics(p, y, np.arange(600).astype(str), selective=True)
    for name in ("brier", "log_loss", "aurc", "augrc", "average_precision"):
        value, low, high = own["intervals"][name]
        assert low <= value == own[name] <= high
        assert high - low > 1.5 * (naive["intervals"][name][2] - naive["intervals"][name][1])
    assert {"ece", "prr", "tpr_at_1_fpr", "tpr_at_5_fpr", "base_rate"} <= own.keys()


def test_reliability_bins_hold_equal_shares() -> None:
    bins = reliability(np.linspace(0, 1, 30), np.r_[np.zeros(15, dtype=int), np.ones(15, dtype=int)], bins=3)
    assert [b["count"] for b in bins] == [10, 10, 10]
    assert [b["rate"] for b in bins] == [0, 0.5, 1]
    assert bins[1]["probability"] == pytest.approx(0.5)
