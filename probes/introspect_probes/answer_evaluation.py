"""Confidence against its baselines, answer by answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect_probes.answer_baselines import answer_scores
from introspect_probes.claim_evaluation import ALL, class_prior, known_scores
from introspect_probes.dataset import Table
from introspect_probes.metrics import ClusterBootstrap, expected_calibration_error, interval, probability_metrics, reliability
from introspect_probes.selective import risk_coverage

Floats = NDArray[np.floating]


def evaluate_answers(fit: Table, test: Table, confidence: Floats, conditions: list[str]) -> dict[str, Any]:
    """Confidence against baselines, higher for right answers, with calibration and selective prediction, per condition and in all."""
    scores: dict[str, Floats] = {**answer_scores(fit, test), "probe": confidence}
    labels, prior = test.correct.astype(np.int64), class_prior(fit.correct, fit.reduced, test.reduced)
    result: dict[str, Any] = {}
    for condition in conditions:
        inside = test.conditions == condition
        result[condition] = {
            **_compare(known_scores(scores, inside), labels[inside], test.groups[inside]),
            "of_some": _of_some({name: value[inside] for name, value in scores.items()}, labels[inside], test.groups[inside]),
            "confidence": probability_metrics(confidence[inside], labels[inside], test.groups[inside], selective=True),
            "class_prior": probability_metrics(prior[inside], labels[inside]),
            "reliability": reliability(confidence[inside], labels[inside]),
            "risk_coverage": {name: _curve(scores[name][inside], labels[inside]) for name in ("L", "probe")},
        }
    result[ALL] = {
        **_compare(known_scores(scores, np.ones(len(labels), dtype=np.bool_)), labels, test.groups),
        "ece": round(expected_calibration_error(confidence, labels), 4),
        "count": len(test.answers),
    }
    return result


def _compare(scores: dict[str, Floats], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> dict[str, Any]:
    """AUROC of every score, and the paired difference of the probe and what it must beat."""
    bootstrap = ClusterBootstrap(groups)
    draws = {name: bootstrap.auroc(value, labels) for name, value in scores.items()}
    result: dict[str, Any] = {"auroc": {name: interval(*own).as_list() for name, own in draws.items()}}
    for base in (name for name in ("L", "L+H") if name in draws):
        difference = interval(draws["probe"][0] - draws[base][0], draws["probe"][1] - draws[base][1])
        result[f"probe_minus_{base}"] = difference.as_list()
    return result


def _of_some(scores: dict[str, Floats], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> dict[str, Any]:
    """Scores that some answers have and others have not, on those that do, with L and the probe on the same."""
    result: dict[str, Any] = {}
    for name, value in scores.items():
        had = np.isfinite(value)
        if not had.all() and len(np.unique(labels[had])) == 2:
            same = {other: scores[other][had] for other in (name, "L", "probe")}
            result[name] = {"answers": int(had.sum()), "auroc": _compare(same, labels[had], groups[had])["auroc"]}
    return result


def _curve(confidence: Floats, labels: NDArray[np.int64], points: int = 50) -> list[list[float]]:
    """Coverage and risk at up to `points` places."""
    coverage, risk = risk_coverage(confidence, labels)
    places = np.unique(np.linspace(0, len(coverage) - 1, points).astype(int))
    return [[round(float(coverage[i]), 4), round(float(risk[i]), 4)] for i in places]
