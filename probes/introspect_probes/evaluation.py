"""`introspect evaluate`: a probe set against its baselines on traces it never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from introspect.provenance import provenance
from introspect_probes.card import card
from introspect_probes.carriers import carriers
from introspect_probes.claim_probe import ClaimProbe, budget_features
from introspect_probes.dataset import Claims, Table, load_table
from introspect_probes.domain import Domain
from introspect_probes.errors import TraceError
from introspect_probes.features import LOGITS
from introspect_probes.fitting import fit_logistic
from introspect_probes.guarantee import Guarantee
from introspect_probes.html_report import html_report
from introspect_probes.labels import read_labelled
from introspect_probes.linear import LinearProbe, sigmoid
from introspect_probes.metrics import (
    ClusterBootstrap,
    expected_calibration_error,
    interval,
    probability_metrics,
    reliability,
    weighted_auroc,
)
from introspect_probes.parts import OUTSIDE_KIND, part_of
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import internal_matrix, published_confidence, published_risks, risk_logits
from introspect_probes.selective import risk_coverage
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_probe import StrategyProbe
from introspect_probes.telling_cases import telling_cases
from introspect_probes.traces import Trace
from introspect_probes.training_free import SCORES

ALL = "all"
SHUFFLES = 20
MIN_OF_EACH = 10
"""A claim type is reported on its own, and enters the macro mean, with this many true and false claims."""
Floats = NDArray[np.floating]


def evaluate(probes: ProbeSet, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Evaluate a probe set and write `report.json`, `report.html` and `card.md`.

    The baselines that need fitting are fitted on the same part of the same traces
    as the probes were, and everything is scored on the test part only. What the probe set
    or the traces do not have is left out of the report and named under `absent`.

    Returns:
        The report.

    Raises:
        TraceError: the folders hold no labelled answers to test on, or none to fit the baselines on.
    """
    traces = list(chain.from_iterable(read_labelled(folder) for folder in folders))
    inside = [t for t in traces if t.kind != OUTSIDE_KIND]
    test = load_table(t for t in inside if part_of(t) == "test")
    fit = load_table(t for t in inside if part_of(t) == "fit")
    check_answers(fit, test)
    risks = published_risks(probes, test.claims)
    confidence = published_confidence(probes, test)
    conditions = sorted(set(test.conditions.tolist()))
    absent = dict(probes.manifest.get("absent", {})) | {"hidden states (L+H)": "the engine does not record hidden states"}
    report: dict[str, Any] = {
        "probe_set": probes.name,
        "conditions": {c: _condition_facts(test, c) for c in conditions},
        "answers": evaluate_answers(fit, test, confidence, conditions),
        "carriers": carriers(probes),
        "absent": absent,
        "provenance": provenance(),
    }
    if probes.claims is not None and len(test.claims) and len(fit.claims):
        report["claims"] = evaluate_claims(probes.claims, fit.claims, test.claims, risks, conditions)
    if probes.strategy is not None and len(test.claims):
        report["strategy"] = evaluate_strategy(probes.strategy, test.claims)
    if probes.domain is not None:
        report["domain"] = evaluate_domain(probes.domain, test, [t for t in traces if t.kind == OUTSIDE_KIND and part_of(t) == "test"])
    if probes.guarantee is not None:
        report["guarantee"] = evaluate_guarantee(probes.guarantee, test, confidence)
    cases = telling_cases(probes, test, confidence)
    report["cases"] = [case.facts() for case in cases]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(html_report(report, cases), encoding="utf-8")
    (out / "card.md").write_text(card(probes), encoding="utf-8")
    return report


def check_answers(fit: Table, test: Table) -> None:
    """Make sure that there is something to test on, and to fit baselines on.

    Raises:
        TraceError: there is not; the message says what to give.
    """
    if not test.answers:
        missing = f" ({len(test.unlabelled)} are not labelled, the first is {test.unlabelled[0]})" if test.unlabelled else ""
        raise TraceError(f"no labelled answers to test on{missing}; record cases of the test pool, or more groups")
    if not fit.answers:
        raise TraceError("the baselines are fitted on the traces that the probes were fitted on: give their folders too")
    for table, part in ((fit, "fit"), (test, "test")):
        if len(np.unique(table.correct)) < 2:
            raise TraceError(
                f"all {len(table.answers)} answers of the {part} part are {'right' if table.correct[0] else 'wrong'}; record more"
            )


def evaluate_guarantee(guarantee: Guarantee, test: Table, confidence: Floats) -> dict[str, Any]:
    """The guarantee, and what became of it on test answers."""
    accepted = confidence >= guarantee.threshold
    return {
        **guarantee.as_dict(),
        "test_answers": len(test.answers),
        "test_accepted": int(accepted.sum()),
        "test_risk": round(float((test.correct[accepted] == 0).mean()), 4) if accepted.any() else None,
    }


def claim_scores(probe: ClaimProbe, fit: Claims, test: Claims) -> dict[str, Floats]:
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
        "probe": risk_logits(probe.internal, probe.prior, test),
    }


def logit_matrix(claims: Claims) -> Floats:
    """What the baseline L reads: all logit statistics with position, repetition, type and budget."""
    return np.concatenate([claims.logits, claims.place, claims.kind, claims.budget], axis=1)


def evaluate_claims(probe: ClaimProbe, fit: Claims, test: Claims, risks: Floats, conditions: list[str]) -> dict[str, Any]:
    """AUROC with intervals per condition, claim type and score, and the calibration of the published risk."""
    scores = claim_scores(probe, fit, test)
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
            "position_bins": _position_bins(own, claims),
            "risk": probability_metrics(risks[inside], claims.label, claims.group),
            "reliability": reliability(risks[inside], claims.label),
            "shuffled_labels": _known([weighted_auroc(s[inside], claims.label, np.ones(len(claims))) for s in shuffled]),
        }
    return result


def _compare(scores: dict[str, Floats], claims: Claims, *, macro: bool) -> dict[str, Any]:
    """AUROC of every score, and the paired difference of the probe and L."""
    bootstrap = ClusterBootstrap(claims.group)
    strata = _reportable(claims) if macro else None
    draws = {name: bootstrap.auroc(value, claims.label, strata) for name, value in scores.items()}
    difference = interval(draws["probe"][0] - draws["L"][0], draws["probe"][1] - draws["L"][1])
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
    bins = _position_rows(claims)
    return {
        name: round(float(np.mean([weighted_auroc(v[rows], claims.label[rows], np.ones(len(rows))) for rows in bins])), 4)
        for name, v in scores.items()
        if bins
    }


def _position_bins(scores: dict[str, Floats], claims: Claims) -> list[dict[str, Any]]:
    """AUROC of every score within each position bin that holds true and false claims."""
    return [
        {
            "first": int(claims.place[rows, 0].min()),
            "last": int(claims.place[rows, 0].max()),
            "claims": len(rows),
            "false": int(claims.label[rows].sum()),
            "auroc": {n: round(weighted_auroc(v[rows], claims.label[rows], np.ones(len(rows))), 4) for n, v in scores.items()},
        }
        for rows in _position_rows(claims)
    ]


def _position_rows(claims: Claims) -> list[NDArray[np.int64]]:
    order = np.argsort(claims.place[:, 0], kind="stable")
    return [rows for rows in np.array_split(order, 10) if 0 < claims.label[rows].sum() < len(rows)]


def _known(values: list[float]) -> list[float]:
    """Rounded, without those that could not be had."""
    return [round(value, 4) for value in values if np.isfinite(value)]


def _shuffled_control(fit: Claims, test: Claims) -> list[Floats]:
    """Scores of probes fitted on shuffled labels: on average they must know nothing.

    One alone proves little: features of many claims move together, so that a single meaningless direction can rank well or badly.
    """
    matrix, fresh = internal_matrix(fit), internal_matrix(test)
    rng = np.random.default_rng(0)
    probes = [fit_logistic(matrix, rng.permutation(fit.label), fit.group, strengths=(0.03,))[0] for _ in range(SHUFFLES)]
    return [np.asarray(probe.logits(fresh)[:, 0]) for probe in probes]


def answer_scores(fit: Table, test: Table) -> dict[str, Floats]:
    """Baselines for "the answer is right", higher for right answers."""
    kinds = sorted({a.trace.kind for a in fit.answers})

    def type_matrix(table: Table) -> Floats:
        return np.array([[a.trace.kind == k for k in kinds] + [len(a.tokens)] for a in table.answers], dtype=np.float32)

    def l_matrix(table: Table) -> Floats:
        last = np.stack([a.tokens[-1].logits for a in table.answers])
        budget = np.stack([budget_features(a.trace.prompt) for a in table.answers])
        return np.concatenate([last, type_matrix(table), budget], axis=1)

    def entropy_matrix(table: Table) -> Floats:
        return np.stack([a.tokens[-1].logits for a in table.answers])[:, [LOGITS.index("mean_entropy"), LOGITS.index("max_entropy")]]

    def fitted(matrix_of: Callable[[Table], Floats]) -> Floats:
        probe: LinearProbe = fit_logistic(matrix_of(fit), fit.correct, fit.groups, strengths=(0.1, 1.0))[0]
        return np.asarray(sigmoid(probe.logits(matrix_of(test))[:, 0]))

    free = {name: np.array([a.scores[name] for a in test.answers]) for name in SCORES}
    return {
        "question type and length": fitted(type_matrix),
        "question and answer text": text_scores(fit, test),
        **{e.title: e.sign * free[name] for name, e in SCORES.items() if np.isfinite(free[name]).all()},
        "CES": fitted(entropy_matrix),
        "L": fitted(l_matrix),
    }


def text_scores(fit: Table, test: Table) -> Floats:
    """What the words of question and answer alone tell: tf-idf of words and pairs, logistic regression."""

    def texts(table: Table) -> list[str]:
        return [f"{a.trace.question} | {a.trace.answer}" for a in table.answers]

    words = TfidfVectorizer(ngram_range=(1, 2), tokenizer=str.split, token_pattern=None)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(words.fit_transform(texts(fit)), fit.correct)
    return np.asarray(model.predict_proba(words.transform(texts(test)))[:, 1], dtype=np.float64)


def evaluate_answers(fit: Table, test: Table, confidence: Floats, conditions: list[str]) -> dict[str, Any]:
    """Confidence against baselines, higher for right answers, with calibration and selective prediction, per condition."""
    scores: dict[str, Floats] = {**answer_scores(fit, test), "probe": confidence}
    result: dict[str, Any] = {}
    for condition in conditions:
        inside = test.conditions == condition
        labels, groups = test.correct[inside].astype(np.int64), test.groups[inside]
        bootstrap = ClusterBootstrap(groups)
        draws = {name: bootstrap.auroc(v[inside], labels) for name, v in scores.items()}
        difference = interval(draws["probe"][0] - draws["L"][0], draws["probe"][1] - draws["L"][1])
        result[condition] = {
            "auroc": {name: interval(*own).as_list() for name, own in draws.items()},
            "probe_minus_L": difference.as_list(),
            "confidence": probability_metrics(confidence[inside], labels, groups, selective=True),
            "reliability": reliability(confidence[inside], labels),
            "risk_coverage": {name: _curve(scores[name][inside], labels) for name in ("L", "probe")},
        }
    result[ALL] = {"ece": round(expected_calibration_error(confidence, test.correct.astype(np.int64)), 4), "count": len(test.answers)}
    return result


def _curve(confidence: Floats, labels: NDArray[np.int64], points: int = 50) -> list[list[float]]:
    """Coverage and risk at up to `points` places."""
    coverage, risk = risk_coverage(confidence, labels)
    places = np.unique(np.linspace(0, len(coverage) - 1, points).astype(int))
    return [[round(float(coverage[i]), 4), round(float(risk[i]), 4)] for i in places]


def evaluate_strategy(probe: StrategyProbe, claims: Claims) -> dict[str, Any]:
    """Agreement with causal labels, beside the labels' own agreement across disjoint donors and what the claim's type alone gives."""
    measured = claims.where(claims.strategy >= -1)
    known = [STRATEGIES.index(s) for s in probe.states]
    rows = measured.where(np.isin(measured.strategy, known))
    if not len(rows):
        return {"claims": 0}
    labels = np.array([known.index(s) for s in rows.strategy])
    probabilities = probe.probabilities(rows.heads)
    sets = probabilities >= np.array(probe.thresholds)
    kinds = {k: int(np.bincount(labels[rows.kinds == k]).argmax()) for k in set(rows.kinds.tolist())}
    both = (measured.halves >= 0).all(1)
    return {
        "measured": len(measured),
        "claims": len(rows),
        "counts": {probe.states[i]: int((labels == i).sum()) for i in range(len(known))},
        "macro_f1": round(float(f1_score(labels, probabilities.argmax(1), average="macro")), 4),
        "accuracy": round(float((probabilities.argmax(1) == labels).mean()), 4),
        "type_only_macro_f1": round(float(f1_score(labels, [kinds[k] for k in rows.kinds.tolist()], average="macro")), 4),
        "label_agreement_across_donors": round(float((measured.halves[both, 0] == measured.halves[both, 1]).mean()), 4),
        "set_coverage": {probe.states[i]: round(float(sets[labels == i, i].mean()), 4) for i in range(len(known)) if (labels == i).any()},
        "singletons": round(float((sets.sum(1) == 1).mean()), 4),
    }


def evaluate_domain(domain: Domain, test: Table, outside: list[Trace]) -> dict[str, Any]:
    """How well prompts outside the world are told apart, on pictures and words the fit never met."""
    inside = np.array([domain.probability(a.trace.prompt) for a in test.answers if a.trace.condition == "full"])
    if not outside or not len(inside):
        return {"outside": 0}
    out = np.array([domain.probability(t.prompt) for t in outside])
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
        "false": round(float(claims.label.mean()), 4) if len(claims) else None,
    }
