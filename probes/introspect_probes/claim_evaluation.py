"""Hallucination risk against its baselines, claim by claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect_probes.claim_baselines import L_STRENGTHS, claim_scores, fitted_by_cache, logit_matrix
from introspect_probes.claim_probe import ClaimProbe
from introspect_probes.dataset import Claims, Table
from introspect_probes.fitting import fit_budgeted_platt, fit_by_cache
from introspect_probes.metrics import ClusterBootstrap, interval, probability_metrics, reliability, weighted_auroc
from introspect_probes.published import internal_matrix

ALL = "all"
SHUFFLES = 20
MIN_OF_EACH = 10
"""A claim type is reported on its own, and enters the macro mean, with this many true and false claims."""
DIFFERENCES = (("probe", "L"), ("probe", "L+H"), ("L+H+attention", "L+H"))
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ClaimReport:
    """Claims under each condition, and under all of them together, where baselines that know the budget have something to tell."""

    conditions: dict[str, Any]
    pooled: dict[str, Any]


def evaluate_claims(probe: ClaimProbe, fit: Table, calibration: Table, test: Table, risks: Floats, conditions: list[str]) -> ClaimReport:
    """AUROC with intervals per condition, claim type and score, and the calibration of the published risk.

    Args:
        probe: the hallucination probe.
        fit: what baselines are fitted on.
        calibration: what L is calibrated on, so that its probabilities can be compared; may be empty.
        test: what is scored.
        risks: the published risk of every test claim.
        conditions: of the test part.
    """
    scores = claim_scores(probe, fit, test)
    shuffled = _shuffled_control(fit.claims, test.claims)
    calibrated = {"class prior": prior_probabilities(fit.claims, test.claims)}
    if can_calibrate(calibration.claims):
        calibrated["L"] = calibrated_logits(fit.claims, calibration.claims, test.claims)
    result: dict[str, Any] = {}
    for condition in conditions:
        inside = test.claims.condition == condition
        claims, answers = test.claims.where(inside), cases_of(test)[inside]
        own = known_scores(scores, inside)
        rows = {ALL: compare(own, claims, answers, macro=True)}
        for kind in sorted(set(claims.kinds.tolist())):
            of_kind = claims.kinds == kind
            if min(claims.label[of_kind].sum(), (1 - claims.label[of_kind]).sum()) >= MIN_OF_EACH:
                rows[kind] = compare({n: v[of_kind] for n, v in own.items()}, claims.where(of_kind), answers[of_kind], macro=False)
        result[condition] = {
            "auroc": rows,
            "within_position": _within_position(own, claims),
            "within_position_and_type": within_position_and_type(own, claims),
            "position_bins": _position_bins(own, claims),
            "risk": probability_metrics(risks[inside], claims.label, claims.group),
            "calibrated_baselines": {n: probability_metrics(p[inside], claims.label) for n, p in calibrated.items()},
            "reliability": reliability(risks[inside], claims.label),
            "shuffled_labels": _known([weighted_auroc(s[inside], claims.label, np.ones(len(claims))) for s in shuffled]),
        }
    everywhere = known_scores(scores, np.ones(len(test.claims), dtype=np.bool_))
    return ClaimReport(result, compare(everywhere, test.claims, cases_of(test), macro=True))


def known_scores(scores: dict[str, Floats], inside: NDArray[np.bool_]) -> dict[str, Floats]:
    """The rows of a mask, of those scores that all of them have."""
    own = {name: value[inside] for name, value in scores.items()}
    return {name: value for name, value in own.items() if np.isfinite(value).all()}


def cases_of(table: Table) -> NDArray[np.str_]:
    """The case of every claim."""
    return np.array([table.answers[a].trace.case_id for a in table.claims.answer])


def prior_probabilities(fit: Claims, test: Claims) -> Floats:
    """The share of false claims in the fit, whatever the claim, under the same kind of cache: what a probability must beat."""
    return class_prior(fit.label, fit.reduced, test.reduced)


def class_prior(labels: NDArray[np.int8], reduced: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Floats:
    """The share of label 1 under the kind of cache of each wanted row; under any, where there were none of its kind."""
    shares = [float(labels[own].mean() if own.any() else labels.mean()) for own in (~reduced, reduced)]
    return np.where(wanted, shares[1], shares[0])


def can_calibrate(claims: Claims) -> bool:
    """Whether claims of both labels are there, under whole and reduced caches where these occur."""
    parts = [claims.label[claims.reduced == reduced] for reduced in (False, True)]
    return len(claims) > 0 and all(len(np.unique(part)) == 2 for part in parts if len(part))


def calibrated_logits(fit: Claims, calibration: Claims, test: Claims) -> Floats:
    """L as a probability, calibrated as the probe is."""
    probe = fitted_by_cache(logit_matrix(fit), fit, L_STRENGTHS)
    logits = probe.logits(logit_matrix(calibration), calibration.reduced)
    platt = fit_budgeted_platt(logits, calibration.label, calibration.reduced, "L")
    return platt(probe.logits(logit_matrix(test), test.reduced), test.reduced)


def compare(scores: dict[str, Floats], claims: Claims, cases: NDArray[np.str_], *, macro: bool) -> dict[str, Any]:
    """AUROC of every score, and paired differences; those of the mean also under a two-way bootstrap, of groups and of cases."""
    bootstrap = ClusterBootstrap(claims.group)
    strata = _reportable(claims) if macro else None
    draws = {name: bootstrap.auroc(value, claims.label, strata) for name, value in scores.items()}
    result: dict[str, Any] = {
        "claims": len(claims),
        "false": int(claims.label.sum()),
        "groups": len(set(claims.group.tolist())),
        "scores": {name: interval(*d).as_list() for name, d in draws.items()},
    }
    for ours, theirs in (pair for pair in DIFFERENCES if set(pair) <= set(draws)):
        result[f"{ours}_minus_{theirs}"] = interval(draws[ours][0] - draws[theirs][0], draws[ours][1] - draws[theirs][1]).as_list()
    if macro:
        crossed = ClusterBootstrap(claims.group, crossed=cases)
        both = {name: crossed.auroc(scores[name], claims.label, strata) for name in ("probe", "L")}
        result["probe_minus_L_two_way"] = interval(both["probe"][0] - both["L"][0], both["probe"][1] - both["L"][1]).as_list()
    return result


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


def within_position_and_type(scores: dict[str, Floats], claims: Claims) -> dict[str, Any]:
    """Mean AUROC over pairs of claim type and position bin: what neither where a claim stands nor what it is about can tell.

    Ten bins of equal mass; a pair counts with `MIN_OF_EACH` claims of each label.
    """
    bins = np.empty(len(claims), dtype=np.int64)
    for number, rows in enumerate(np.array_split(np.argsort(claims.place[:, 0], kind="stable"), 10)):
        bins[rows] = number
    cells = np.array([f"{kind}-{number}" for kind, number in zip(claims.kinds.tolist(), bins, strict=True)], dtype=np.str_)
    names = [c for c in set(cells.tolist()) if min(claims.label[cells == c].sum(), (1 - claims.label[cells == c]).sum()) >= MIN_OF_EACH]
    if not names:
        return {"pairs": 0}
    inside = np.isin(cells, names)
    bootstrap = ClusterBootstrap(claims.group[inside])
    found = {n: bootstrap.auroc(v[inside], claims.label[inside], cells[inside]) for n, v in scores.items()}
    return {"pairs": len(names), "scores": {name: interval(*own).as_list() for name, own in found.items()}}


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
    shuffles = [rng.permutation(fit.label) for _ in range(SHUFFLES)]
    probes = [fit_by_cache(matrix, labels, fit.group, fit.reduced, strengths=(0.03,))[0] for labels in shuffles]
    return [probe.logits(fresh, test.reduced) for probe in probes]
