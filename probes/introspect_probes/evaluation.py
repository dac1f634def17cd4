"""`introspect evaluate`: a probe set against its baselines on traces it never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from introspect.provenance import provenance
from introspect_probes.dataset import Claims, Table, load_table
from introspect_probes.errors import TraceError
from introspect_probes.fitting import fit_logistic
from introspect_probes.linear import LinearProbe, sigmoid
from introspect_probes.metrics import ClusterBootstrap, Interval, expected_calibration_error, interval, probability_metrics, weighted_auroc
from introspect_probes.probe_set import ProbeSet
from introspect_probes.signals import STRATEGIES
from introspect_probes.traces import Trace, read_traces
from introspect_probes.train import OUTSIDE_KIND, internal_matrix, part_of, risk_logits

ALL = "all"
SHUFFLES = 20
MIN_OF_EACH = 10
"""A claim type is reported on its own, and enters the macro mean, with this many true and false claims."""
Floats = NDArray[np.floating]


def evaluate(probes: ProbeSet, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Evaluate a probe set and write `report.json`.

    The baselines that need fitting are fitted on the same part of the same traces
    as the probes were, and everything is scored on the test part only.

    Returns:
        The report.

    Raises:
        TraceError: the folders hold no claims to test on, or none to fit the baselines on.
    """
    traces = list(chain.from_iterable(read_traces(folder) for folder in folders))
    inside = [t for t in traces if t.kind != OUTSIDE_KIND]
    test = load_table(t for t in inside if part_of(t) == "test")
    fit = load_table(t for t in inside if part_of(t) == "fit")
    if not len(test.claims):
        raise TraceError(f"none of the {len(test.answers)} test answers makes a claim; record cases of the test pool, or more groups")
    if not len(fit.claims):
        raise TraceError("the baselines are fitted on the traces that the probes were fitted on: give their folders too")
    risks = probes.risk_calibration(risk_logits(probes.internal, probes.prior, test.claims), test.claims.reduced)
    conditions = sorted(set(test.conditions.tolist()))
    report: dict[str, Any] = {
        "probe_set": probes.name,
        "conditions": {c: _condition_facts(test, c) for c in conditions},
        "claims": evaluate_claims(probes, fit.claims, test.claims, risks, conditions),
        "answers": evaluate_answers(probes, fit, test, risks, conditions),
        "strategy": evaluate_strategy(probes, test.claims),
        "domain": evaluate_domain(probes, test, [t for t in traces if t.kind == OUTSIDE_KIND and part_of(t) == "test"]),
        "provenance": provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def claim_scores(probes: ProbeSet, fit: Claims, test: Claims) -> dict[str, Floats]:
    """Scores of every test claim, higher for false: baselines first, the probe last."""

    def fitted(matrix_of: Any, strengths: Sequence[float] = (0.03, 0.1, 1.0)) -> Floats:
        probe, _ = fit_logistic(matrix_of(fit), fit.label, fit.group, strengths=strengths)
        return np.asarray(probe.logits(matrix_of(test))[:, 0])

    first = test.logits
    return {
        "position": fitted(lambda c: np.concatenate([c.place, c.budget], 1)),
        "question type": fitted(lambda c: np.concatenate([c.kind, c.budget], 1)),
        "max probability": -first[:, 3].astype(float),
        "mean logprob": -first[:, 8].astype(float),
        "entropy": first[:, 1].astype(float),
        "L": fitted(logit_matrix),
        "attention alone": np.asarray(fit_logistic(fit.heads, fit.label, fit.group)[0].logits(test.heads)[:, 0]),
        "probe": risk_logits(probes.internal, probes.prior, test),
    }


def logit_matrix(claims: Claims) -> Floats:
    """What the baseline L reads: all logit statistics with position, repetition, type and budget."""
    return np.concatenate([claims.logits, claims.place, claims.kind, claims.budget], axis=1)


def evaluate_claims(probes: ProbeSet, fit: Claims, test: Claims, risks: Floats, conditions: list[str]) -> dict[str, Any]:
    """AUROC with intervals per condition, claim type and score, and the calibration of the published risk."""
    scores = claim_scores(probes, fit, test)
    shuffled = _shuffled_control(fit, test)
    result: dict[str, Any] = {}
    for condition in conditions:
        inside = test.condition == condition
        claims = test.where(inside)
        own = {name: value[inside] for name, value in scores.items()}
        rows = {ALL: _compare(own, claims, macro=True)}
        for kind in sorted(set(claims.kinds.tolist())):
            of_kind = claims.kinds == kind
            if min(claims.label[of_kind].sum(), (1 - claims.label[of_kind]).sum()) >= MIN_OF_EACH:
                rows[kind] = _compare({n: v[of_kind] for n, v in own.items()}, claims.where(of_kind), macro=False)
        result[condition] = {
            "auroc": rows,
            "within_position": _within_position(own, claims),
            "risk": probability_metrics(risks[inside], claims.label),
            "shuffled_labels": [round(weighted_auroc(s[inside], claims.label, np.ones(len(claims))), 4) for s in shuffled],
        }
    return result


def _compare(scores: dict[str, Floats], claims: Claims, *, macro: bool) -> dict[str, Any]:
    """AUROC of every score, and the paired difference of the probe and L."""
    bootstrap = ClusterBootstrap(claims.group)
    strata = _reportable(claims) if macro else None
    draws = {name: bootstrap.auroc(value, claims.label, strata) for name, value in scores.items()}
    difference = Interval(
        draws["probe"][0] - draws["L"][0], *(float(x) for x in np.nanpercentile(draws["probe"][1] - draws["L"][1], [2.5, 97.5]))
    )
    return {
        "claims": len(claims),
        "false": int(claims.label.sum()),
        "groups": len(set(claims.group.tolist())),
        "scores": {name: interval(*d).as_list() for name, d in draws.items()},
        "probe_minus_L": difference.as_list(),
    }


def _reportable(claims: Claims) -> NDArray[np.str_]:
    """Claim types as strata of the macro mean; rare ones share one stratum that is left out."""
    counts = {k: (claims.label[claims.kinds == k].sum(), (claims.kinds == k).sum()) for k in set(claims.kinds.tolist())}
    kept = {k for k, (false, total) in counts.items() if min(false, total - false) >= MIN_OF_EACH}
    return np.array([k if k in kept else f"rare-{i}" for i, k in enumerate(claims.kinds.tolist())])


def _within_position(scores: dict[str, Floats], claims: Claims) -> dict[str, float]:
    """Mean AUROC within ten bins of equal mass by position in the answer."""
    order = np.argsort(claims.place[:, 0], kind="stable")
    bins = [rows for rows in np.array_split(order, 10) if 0 < claims.label[rows].sum() < len(rows)]
    return {
        name: round(float(np.mean([weighted_auroc(v[rows], claims.label[rows], np.ones(len(rows))) for rows in bins])), 4)
        for name, v in scores.items()
    }


def _shuffled_control(fit: Claims, test: Claims) -> list[Floats]:
    """Scores of probes fitted on shuffled labels: on average they must know nothing.

    One alone proves little: features of many claims move together, so that a single meaningless direction can rank well or badly.
    """
    matrix, fresh = internal_matrix(fit), internal_matrix(test)
    rng = np.random.default_rng(0)
    probes = [fit_logistic(matrix, rng.permutation(fit.label), fit.group, strengths=(0.03,))[0] for _ in range(SHUFFLES)]
    return [np.asarray(probe.logits(fresh)[:, 0]) for probe in probes]


def evaluate_answers(probes: ProbeSet, fit: Table, test: Table, risks: Floats, conditions: list[str]) -> dict[str, Any]:
    """Confidence against baselines, higher for right answers, with calibration, per condition."""
    features = test.confidence_features(np.asarray(risks, dtype=np.float64))
    in_domain = np.array([probes.domain.probability(a.trace.prompt) for a in test.answers])
    confidence = probes.confidence_calibration(probes.confidence.logits(features)[:, 0], test.reduced) * in_domain
    kinds = sorted({a.trace.kind for a in fit.answers})

    def type_matrix(table: Table) -> Floats:
        return np.array([[a.trace.kind == k for k in kinds] + [len(a.tokens)] for a in table.answers], dtype=np.float32)

    def l_matrix(table: Table) -> Floats:
        last = np.stack([a.tokens[-1].logits for a in table.answers])
        return np.concatenate([last, type_matrix(table)], axis=1)

    def fitted(matrix_of: Any) -> Floats:
        probe: LinearProbe = fit_logistic(matrix_of(fit), fit.correct, fit.groups, strengths=(0.1, 1.0))[0]
        return np.asarray(sigmoid(probe.logits(matrix_of(test))[:, 0]))

    scores: dict[str, Floats] = {
        "question type and length": fitted(type_matrix),
        "mean logprob": np.array([a.scores["mean_logprob"] for a in test.answers]),
        "min probability": np.array([a.scores["min_probability"] for a in test.answers]),
        "entropy": -np.array([a.scores["mean_entropy"] for a in test.answers]),
        "SVAR": np.array([a.scores["svar"] for a in test.answers]),
        "lookback ratio": np.array([a.scores["lookback_ratio"] for a in test.answers]),
        "RAUQ": -np.array([a.scores["rauq"] for a in test.answers]),
        "L": fitted(l_matrix),
        "probe": confidence,
    }
    result = {}
    for condition in conditions:
        inside = test.conditions == condition
        labels = test.correct[inside].astype(np.int64)
        bootstrap = ClusterBootstrap(test.groups[inside])
        result[condition] = {
            "auroc": {name: interval(*bootstrap.auroc(v[inside], labels)).as_list() for name, v in scores.items()},
            "confidence": probability_metrics(confidence[inside], labels),
        }
    result[ALL] = {"ece": round(expected_calibration_error(confidence, test.correct.astype(np.int64)), 4), "count": len(test.answers)}
    return result


def evaluate_strategy(probes: ProbeSet, claims: Claims) -> dict[str, Any]:
    """Agreement with causal labels, beside the labels' own agreement across disjoint donors and what the claim's type alone gives."""
    measured = claims.where(claims.strategy >= -1)
    known = [STRATEGIES.index(s) for s in probes.strategies]
    rows = measured.where(np.isin(measured.strategy, known))
    if not len(rows):
        return {"claims": 0}
    labels = np.array([known.index(s) for s in rows.strategy])
    logits = probes.strategy.logits(rows.heads) / probes.strategy_temperature
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exp / exp.sum(1, keepdims=True)
    sets = probabilities >= np.array(probes.strategy_thresholds)
    kinds = {k: int(np.bincount(labels[rows.kinds == k]).argmax()) for k in set(rows.kinds.tolist())}
    both = (measured.halves >= 0).all(1)
    return {
        "measured": len(measured),
        "claims": len(rows),
        "counts": {probes.strategies[i]: int((labels == i).sum()) for i in range(len(known))},
        "macro_f1": round(float(f1_score(labels, probabilities.argmax(1), average="macro")), 4),
        "accuracy": round(float((probabilities.argmax(1) == labels).mean()), 4),
        "type_only_macro_f1": round(float(f1_score(labels, [kinds[k] for k in rows.kinds.tolist()], average="macro")), 4),
        "label_agreement_across_donors": round(float((measured.halves[both, 0] == measured.halves[both, 1]).mean()), 4),
        "set_coverage": {
            probes.strategies[i]: round(float(sets[labels == i, i].mean()), 4) for i in range(len(known)) if (labels == i).any()
        },
        "singletons": round(float((sets.sum(1) == 1).mean()), 4),
    }


def evaluate_domain(probes: ProbeSet, test: Table, outside: list[Trace]) -> dict[str, Any]:
    """How well prompts outside the world are told apart, on pictures and words the fit never met."""
    inside = np.array([probes.domain.probability(a.trace.prompt) for a in test.answers if a.trace.condition == "full"])
    if not outside or not len(inside):
        return {"outside": 0}
    out = np.array([probes.domain.probability(t.prompt) for t in outside])
    labels = np.r_[np.zeros(len(inside)), np.ones(len(out))].astype(np.int64)
    return {
        "inside": len(inside),
        "outside": len(out),
        "auroc": round(weighted_auroc(-np.r_[inside, out], labels, np.ones(len(labels))), 4),
        "inside_kept": round(float((inside >= 0.5).mean()), 4),
        "outside_told": round(float((out < 0.5).mean()), 4),
    }


def _condition_facts(test: Table, condition: str) -> dict[str, Any]:
    inside = test.conditions == condition
    budgets = [a.trace.prompt.budget for a, chosen in zip(test.answers, inside, strict=True) if chosen]
    claims = test.claims.where(test.claims.condition == condition)
    return {
        "policy": budgets[0].policy,
        "kept": round(float(np.mean([b.effective / b.prompt_tokens for b in budgets])), 4),
        "answers": int(inside.sum()),
        "right": round(float(test.correct[inside].mean()), 4),
        "claims": len(claims),
        "false": round(float(claims.label.mean()), 4),
    }
