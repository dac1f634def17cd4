"""`introspect train`: traces to a probe set."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from introspect.provenance import provenance
from introspect.types import PromptInfo
from introspect_kernels import feature_schema_hash
from introspect_probes.dataset import Claims, Table, load_table
from introspect_probes.domain import Domain, novelty_features, pair_codes, text_tokens
from introspect_probes.errors import FitError
from introspect_probes.fitting import (
    STRENGTHS,
    balancing_weights,
    class_thresholds,
    fit_budgeted_platt,
    fit_logistic,
    fit_temperature,
    out_of_fold_logits,
)
from introspect_probes.grammar import WORLD_GRAMMAR
from introspect_probes.linear import LinearProbe
from introspect_probes.probe_set import FORMAT, ProbeSet
from introspect_probes.signals import STRATEGIES
from introspect_probes.traces import Trace, read_manifest, read_traces

OUTSIDE_KIND = "outside"
COVERAGE = 0.9
MIN_STATES = 20
"""A strategy state enters the probe only with this many labelled claims to fit on."""


def part_of(trace: Trace) -> str:
    """`fit`, `calibration` or `test`: the digit pool where there is one, else a stable hash of the group (one fifth is test)."""
    if trace.pool is not None:
        return {"probe": "fit", "calibration": "calibration"}.get(trace.pool, "test")
    bucket = int.from_bytes(sha256(trace.group.encode()).digest()[:4], "big") % 5
    return "test" if bucket == 0 else "calibration" if bucket == 1 else "fit"


def train(folders: Sequence[Path], out: Path, *, name: str) -> ProbeSet:
    """Fit, calibrate and save a probe set.

    Test traces (see `part_of`) are never read into a fit.

    Args:
        folders: trace folders of one model.
        out: where to write the probe set.
        name: its name and version.

    Raises:
        FitError: the traces cannot support the fit; the message says what to record.
        TraceError: a folder holds no readable traces.
    """
    manifests = [read_manifest(folder) for folder in folders]
    if len({m["fingerprint"] for m in manifests}) != 1:
        raise FitError(f"the traces are of {len({m['fingerprint'] for m in manifests})} models; give traces of one")
    traces = [t for t in chain.from_iterable(read_traces(f) for f in folders) if part_of(t) != "test"]
    inside = [t for t in traces if t.kind != OUTSIDE_KIND]
    outside = [t for t in traces if t.kind == OUTSIDE_KIND]
    fit = load_table(t for t in inside if part_of(t) == "fit")
    calibration = load_table(t for t in inside if part_of(t) == "calibration")
    check_tables(fit, calibration)
    probes = fit_probe_set(fit, calibration, outside, _manifest(name, manifests[0], inside))
    probes.save(out)
    return probes


def check_tables(fit: Table, calibration: Table) -> None:
    """Make sure that there is something to fit and to calibrate on.

    Raises:
        FitError: a part has no answers, or no claims; the message says what to record.
    """
    for table, part, pool in ((fit, "fit on", "probe"), (calibration, "calibrate on", "calibration")):
        if not table.answers:
            raise FitError(f"no answers to {part}: record cases of pool {pool} too, or more groups of your own")
        if not len(table.claims):
            raise FitError(
                f"none of the {len(table.answers)} answers to {part} makes a claim; train needs claims (a world's questions, or cases with "
                "spans) and strategy labels (record --interventions)"
            )


def fit_probe_set(fit: Table, calibration: Table, outside: list[Trace], manifest: dict[str, Any]) -> ProbeSet:
    """Fit every probe on one table and calibrate on the other."""
    internal, prior, fit_risk_logits = fit_risk(fit.claims)
    calibration_logits = risk_logits(internal, prior, calibration.claims)
    held = calibration.claims
    risk_calibration = fit_budgeted_platt(calibration_logits, held.label, held.reduced, "hallucination risk")
    confidence = _fit_confidence(fit, risk_calibration(fit_risk_logits, fit.claims.reduced))
    calibration_risks = risk_calibration(calibration_logits, held.reduced)
    confidence_logits = confidence.logits(calibration.confidence_features(calibration_risks))[:, 0]
    strategy, states, temperature, thresholds = _fit_strategy(fit.claims, calibration.claims)
    any_false, any_false_logits, any_false_reduced = _any_false(calibration, calibration_risks)
    return ProbeSet(
        manifest={**manifest, "counts": _counts(fit, calibration), "coverage": COVERAGE},
        internal=internal,
        prior=prior,
        risk_calibration=risk_calibration,
        any_false_calibration=fit_budgeted_platt(any_false_logits, any_false, any_false_reduced, "answer-level risk"),
        confidence=confidence,
        confidence_calibration=fit_budgeted_platt(confidence_logits, calibration.correct, calibration.reduced, "confidence"),
        strategy=strategy,
        strategies=tuple(STRATEGIES[i] for i in states),
        strategy_temperature=temperature,
        strategy_thresholds=thresholds,
        domain=_fit_domain(
            [a.trace.prompt for a in fit.answers], [a.trace.prompt for a in calibration.answers], [t.prompt for t in outside]
        ),
    )


def internal_matrix(claims: Claims) -> NDArray[np.float32]:
    """Rows of `probe_set.internal_features`."""
    return np.concatenate([claims.heads, claims.logits, claims.kind], axis=1)


def prior_matrix(claims: Claims) -> NDArray[np.float32]:
    """Rows of `probe_set.prior_features`."""
    return np.concatenate([claims.place, claims.kind, claims.budget], axis=1)


def risk_logits(internal: LinearProbe, prior: LinearProbe, claims: Claims) -> NDArray[np.float64]:
    """Sum of the internal probe's and the prior's logits."""
    return np.asarray(internal.logits(internal_matrix(claims))[:, 0] + prior.logits(prior_matrix(claims))[:, 0])


def fit_risk(claims: Claims) -> tuple[LinearProbe, LinearProbe, NDArray[np.float64]]:
    """The factorised hallucination probe, and out-of-fold logits of the rows it was fitted on.

    The internal probe is fitted with both labels of equal weight at every position,
    repetition and kind, so that these tell it nothing; the prior is fitted on what they
    tell alone (HaloProbe, arXiv 2604.06165). Their logits add up.
    """
    weights = balancing_weights(balance_cells(claims), claims.label)
    internal, strength = fit_logistic(internal_matrix(claims), claims.label, claims.group, weights=weights)
    prior, prior_strength = fit_logistic(prior_matrix(claims), claims.label, claims.group, strengths=(0.1, 1.0))
    logits = out_of_fold_logits(internal_matrix(claims), claims.label, claims.group, strength, weights)
    logits += out_of_fold_logits(prior_matrix(claims), claims.label, claims.group, prior_strength)
    return internal, prior, logits


def balance_cells(claims: Claims) -> list[tuple[object, ...]]:
    """Position (in six bins), repetition and kind of each claim."""
    bins = np.digitize(claims.place[:, 0], (1, 4, 8, 16, 32))
    return [(int(b), int(r), str(k), c < 1) for b, r, k, c in zip(bins, claims.place[:, 2], claims.kinds, claims.budget[:, 0], strict=True)]


def _fit_confidence(table: Table, risks: NDArray[np.float64]) -> LinearProbe:
    """Fitted on whole answers and on one random beginning of each, so that it means something from the first token on."""
    rng = np.random.default_rng(0)
    whole = table.confidence_features(risks)
    begun = table.confidence_features(risks, cut=lambda count: int(rng.integers(1, count + 1)))
    longer = np.array([len(a.tokens) > 1 for a in table.answers])
    features = np.concatenate([whole, begun[longer]])
    labels, groups = np.concatenate([table.correct, table.correct[longer]]), np.concatenate([table.groups, table.groups[longer]])
    return fit_logistic(features, labels, groups)[0]


def _any_false(table: Table, risks: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
    """For answers with claims: whether any is false, the logit of that under independence, whether the cache was reduced."""
    labels, logits, reduced = [], [], []
    for answer in np.unique(table.claims.answer):
        own = table.claims.answer == answer
        all_true = float(np.log1p(-np.clip(risks[own], 1e-6, 1 - 1e-6)).sum())
        labels.append(int(table.claims.label[own].max()))
        logits.append(float(np.log(-np.expm1(all_true)) - all_true))
        reduced.append(bool(table.claims.reduced[own][0]))
    return np.array(labels, dtype=np.int8), np.array(logits), np.array(reduced)


def _fit_strategy(fit: Claims, calibration: Claims) -> tuple[LinearProbe, list[int], float, tuple[float, ...]]:
    """The strategy probe on claims with a causal label, its temperature and conformal thresholds.

    Raises:
        FitError: fewer than two states have enough labelled claims.
    """
    states = [
        s for s in range(len(STRATEGIES)) if (fit.strategy == s).sum() >= MIN_STATES and (calibration.strategy == s).sum() >= MIN_STATES
    ]
    if len(states) < 2:
        raise FitError(f"strategy: {len(states)} states have {MIN_STATES} labelled claims; record with --interventions")
    rows, held = fit.where(np.isin(fit.strategy, states)), calibration.where(np.isin(calibration.strategy, states))
    labels = np.array([states.index(s) for s in rows.strategy], dtype=np.int8)
    held_labels = np.array([states.index(s) for s in held.strategy], dtype=np.int8)
    counts = np.bincount(labels, minlength=len(states))
    probe, _ = fit_logistic(rows.heads, labels, rows.group, weights=(len(labels) / len(states) / counts)[labels], strengths=STRENGTHS[:2])
    logits = probe.logits(held.heads)
    if logits.shape[1] == 1:
        probe = _two_outputs(probe)
        logits = probe.logits(held.heads)
    temperature = fit_temperature(logits, held_labels)
    scaled = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    return probe, states, temperature, class_thresholds(scaled / scaled.sum(axis=1, keepdims=True), held_labels, 1 - COVERAGE)


def _two_outputs(probe: LinearProbe) -> LinearProbe:
    """A binary probe with one output a class."""
    return LinearProbe(
        probe.mean, probe.scale, np.concatenate([0 * probe.weight, probe.weight]), np.concatenate([0 * probe.bias, probe.bias])
    )


def _fit_domain(fit: list[PromptInfo], calibration: list[PromptInfo], outside: list[PromptInfo]) -> Domain:
    """What the fit met, and a novelty probe told apart on the calibration pool's prompts from those outside.

    Raises:
        FitError: no prompts from outside were recorded, or no pictures.
    """
    pictures = np.array([p.image_embedding for p in fit if p.image_embedding is not None], dtype=np.float64)
    if not len(pictures) or not outside:
        raise FitError("domain: traces with pictures and traces of cases outside the world are needed; record both")
    covariance = LedoitWolf().fit(pictures)
    values, vectors = np.linalg.eigh(covariance.covariance_)
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-9))).T.astype(np.float32)
    center = covariance.location_.astype(np.float32)
    tokens = np.unique([t for p in fit for t in text_tokens(p)]).astype(np.int64)
    pairs = np.unique(np.concatenate([pair_codes(text_tokens(p)) for p in fit]))
    features = np.stack([novelty_features(p, center, whitening, tokens, pairs) for p in [*calibration, *outside]])
    labels = np.array([1] * len(calibration) + [0] * len(outside), dtype=np.int8)
    weights = np.where(labels == 1, 0.5 / len(calibration), 0.5 / len(outside)) * len(labels)
    probe, _ = fit_logistic(features, labels, np.arange(len(labels)).astype(str), weights=weights, strengths=(1.0,))
    return Domain(center, whitening, tokens, pairs, probe)


def _manifest(name: str, traces: dict[str, Any], inside: list[Trace]) -> dict[str, Any]:
    budgets = [t.prompt.budget for t in inside]
    return {
        "format": FORMAT,
        "name": name,
        "feature_schema": feature_schema_hash(),
        "grammar": WORLD_GRAMMAR,
        "model": {"name": traces["model"], "fingerprint": traces["fingerprint"], "shape": traces["shape"]},
        "budgets": {
            "policies": sorted({b.policy for b in budgets}),
            "min_ratio": round(min(b.effective / b.prompt_tokens for b in budgets), 4),
        },
        "traces": traces["provenance"],
        "provenance": provenance(),
    }


def _counts(fit: Table, calibration: Table) -> dict[str, dict[str, int]]:
    return {
        part: {
            "answers": len(table.answers),
            "wrong_answers": int((table.correct == 0).sum()),
            "claims": len(table.claims),
            "false_claims": int(table.claims.label.sum()),
            "claims_with_a_cause": int((table.claims.strategy >= 0).sum()),
        }
        for part, table in (("fit", fit), ("calibration", calibration))
    }
