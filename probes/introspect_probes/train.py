"""`introspect train`: traces to a probe set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from introspect_probes.card import card
from introspect_probes.checkpoint import Checkpoint
from introspect_probes.claim_probe import ClaimProbe, any_false_logit
from introspect_probes.dataset import Claims, Table, empty_claims, load_table
from introspect_probes.domain import Domain, novelty_features, pair_codes, text_tokens
from introspect_probes.errors import FitError
from introspect_probes.fitting import (
    FOLDS,
    STRENGTHS,
    balancing_weights,
    class_thresholds,
    fit_budgeted_platt,
    fit_logistic,
    fit_temperature,
    out_of_fold_logits,
)
from introspect_probes.grammar import WORDS_GRAMMAR, WORLD_GRAMMAR
from introspect_probes.guarantee_fit import choose_threshold
from introspect_probes.labels import read_labelled
from introspect_probes.linear import BudgetedPlatt, LinearProbe, Platt
from introspect_probes.probe_set import FORMAT, ProbeSet
from introspect_probes.signals import STRATEGIES
from introspect_probes.sparse import answer_rows, claim_rows, fit_sparse
from introspect_probes.strategy_probe import StrategyProbe
from introspect_probes.traces import Trace, matcher_of, read_manifest

OUTSIDE_KIND = "outside"
COVERAGE = 0.9
MIN_STATES = 20
"""A strategy state enters the probe only with this many labelled claims to fit on."""
_UNCALIBRATED = BudgetedPlatt(Platt(-1.0, 0.0), Platt(-1.0, 0.0))


def part_of(trace: Trace) -> str:
    """`fit`, `calibration` or `test`: the digit pool where there is one, else a stable hash of the group (one fifth is test)."""
    if trace.pool is not None:
        return {"probe": "fit", "calibration": "calibration"}.get(trace.pool, "test")
    bucket = int.from_bytes(sha256(trace.group.encode()).digest()[:4], "big") % 5
    return "test" if bucket == 0 else "calibration" if bucket == 1 else "fit"


def train(
    folders: Sequence[Path], out: Path, *, name: str, target_risk: float | None = None, delta: float = 0.1, sparse: bool = True
) -> ProbeSet:
    """Fit, calibrate and save a probe set.

    Test traces (see `part_of`) are never read into a fit. Confidence is always fitted; hallucination risk where claims
    are labelled, strategy where causes were measured, the domain where prompts from outside were recorded. What is
    absent is named in the manifest (`absent`) with the reason.

    Args:
        folders: trace folders of one model.
        out: where to write the probe set.
        name: its name and version.
        target_risk: also choose the confidence over which at most this share of answers is wrong (see `guarantee_fit`);
            half of the calibration groups are set aside for that.
        delta: the guarantee's chance of being wrong.
        sparse: also write checkpoints that read 1, 2, 4 and 8 heads (see `checkpoint`), with their cost.

    Raises:
        FitError: the traces cannot support the fit; the message says what to record.
        TraceError: a folder holds no readable traces.
    """
    manifest = common_manifest(folders)
    traces = [t for t in chain.from_iterable(read_labelled(f) for f in folders) if part_of(t) != "test"]
    inside = [t for t in traces if t.kind != OUTSIDE_KIND]
    outside = [t for t in traces if t.kind == OUTSIDE_KIND]
    parts = {part: [t for t in inside if part_of(t) == part] for part in ("fit", "calibration")}
    promised = [t for t in parts["calibration"] if target_risk is not None and is_promised(t)]
    held = [t for t in parts["calibration"] if target_risk is None or not is_promised(t)]
    fit, calibration = load_table(parts["fit"]), load_table(held)
    check_tables(fit, calibration)
    probes = fit_probe_set(fit, calibration, outside, _manifest(name, manifest, inside))
    if target_risk is not None:
        probes = with_guarantee(probes, fit, load_table(promised), target_risk=target_risk, delta=delta)
    checkpoints = sparse_variants(probes, fit, calibration) if sparse else []
    probes = replace(probes, manifest={**probes.manifest, "sparse": {str(len(c.heads)): c.quality for c in checkpoints}})
    probes.save(out)
    for checkpoint in checkpoints:
        checkpoint.save(out / f"checkpoint-{len(checkpoint.heads)}.json")
    (out / "card.md").write_text(card(probes), encoding="utf-8")
    return probes


def sparse_variants(probes: ProbeSet, fit: Table, calibration: Table) -> list[Checkpoint]:
    """Checkpoints of few heads: of hallucination risk where the probe set has it, else of confidence."""
    model = {"model": probes.manifest["model"]["fingerprint"], "shape": probes.shape}
    if probes.claims is not None:
        full = risk_logits(probes.claims.internal, probes.claims.prior, calibration.claims)
        return fit_sparse(claim_rows(fit), claim_rows(calibration), full, target="hallucination_risk", **model)
    full = published_confidence(probes, calibration)
    return fit_sparse(answer_rows(fit), answer_rows(calibration), full, target="confidence", **model)


def common_manifest(folders: Sequence[Path]) -> dict[str, Any]:
    """The manifest of trace folders that can be read together.

    Raises:
        FitError: they are of several models, or were judged by several matchers.
    """
    manifests = [read_manifest(folder) for folder in folders]
    for what, values in (("model", [m["fingerprint"] for m in manifests]), ("matcher", [matcher_of(m) for m in manifests])):
        if len(set(values)) != 1:
            other = next(i for i, value in enumerate(values) if value != values[0])
            raise FitError(f"{folders[0]} and {folders[other]} differ in their {what}; give traces of one {what}")
    return manifests[0]


def is_promised(trace: Trace) -> bool:
    """Whether a calibration trace is set aside for the guarantee: every second group, by a stable hash."""
    return sha256(f"guarantee/{trace.group}".encode()).digest()[0] % 2 == 0


def with_guarantee(probes: ProbeSet, fit: Table, promised: Table, *, target_risk: float, delta: float) -> ProbeSet:
    """The probe set with the threshold that `promised`, which nothing was fitted on, supports.

    Raises:
        FitError: no threshold keeps the promise.
    """
    if not promised.answers:
        raise FitError("no answers are left for the guarantee; record more groups of the calibration part")
    guarantee = choose_threshold(
        published_confidence(probes, promised),
        promised.correct,
        promised.groups,
        published_confidence(probes, fit),
        target_risk=target_risk,
        delta=delta,
    )
    facts = {**guarantee.as_dict(), "conditions": sorted(set(promised.conditions.tolist())), "void": "where answers come from elsewhere"}
    return replace(probes, manifest={**probes.manifest, "guarantee": facts}, guarantee=guarantee)


def published_confidence(probes: ProbeSet, table: Table) -> NDArray[np.float64]:
    """The confidence of every answer of a table as a session publishes it."""
    logits = probes.confidence.logits(table.confidence_features(published_risks(probes, table.claims)))[:, 0]
    confidence = probes.confidence_calibration(logits, table.reduced)
    if probes.domain is None:
        return np.asarray(confidence)
    familiar: NDArray[np.float64] = np.array([probes.domain.probability(a.trace.prompt) for a in table.answers])
    return np.asarray(confidence * familiar)


def published_risks(probes: ProbeSet, claims: Claims) -> NDArray[np.float64]:
    """The risk of every claim as a session publishes it; of none where the probe set has no risk."""
    if probes.claims is None:
        return np.zeros(0)
    return probes.claims.calibration(risk_logits(probes.claims.internal, probes.claims.prior, claims), claims.reduced)


def check_tables(fit: Table, calibration: Table) -> None:
    """Make sure that there is something to fit and to calibrate on.

    Raises:
        FitError: a part has no labelled answers; the message says what to record.
    """
    for table, part, pool in ((fit, "fit on", "probe"), (calibration, "calibrate on", "calibration")):
        if table.answers:
            continue
        if table.unlabelled:
            raise FitError(
                f"none of the {len(table.unlabelled)} answers to {part} is labelled (the first is {table.unlabelled[0]}): give `answer` in "
                "cases.jsonl, or labels in labels-*.parquet beside the traces"
            )
        raise FitError(f"no answers to {part}: record cases of pool {pool} too, or more groups of your own")


def fit_probe_set(fit: Table, calibration: Table, outside: list[Trace], manifest: dict[str, Any]) -> ProbeSet:
    """Fit every probe that the tables support on one table and calibrate on the other."""
    absent: dict[str, str] = {}
    claims, fit_risks = None, np.zeros(0)
    if reason := why_no_risk(fit.claims, calibration.claims):
        absent["hallucination_risk"] = reason
        fit, calibration = replace(fit, claims=empty_claims()), replace(calibration, claims=empty_claims())
    else:
        claims, fit_risks = _fit_claims(fit, calibration)
    if reason := why_no_strategy(fit.claims, calibration.claims):
        absent["strategy"] = reason
    if reason := why_no_domain(fit, outside):
        absent["in_domain"] = reason
    draft = ProbeSet(
        manifest={
            **manifest,
            "grammar": grammar_of(fit.claims) if claims is not None else None,
            "counts": _counts(fit, calibration),
            "coverage": COVERAGE,
            "absent": absent,
        },
        confidence=_fit_confidence(fit, fit_risks),
        confidence_calibration=_UNCALIBRATED,
        claims=claims,
        strategy=None if "strategy" in absent else _fit_strategy(fit.claims, calibration.claims),
        domain=None if "in_domain" in absent else _fit_domain(_prompts(fit), _prompts(calibration), [t.prompt for t in outside]),
    )
    features = calibration.confidence_features(published_risks(draft, calibration.claims))
    logits = draft.confidence.logits(features)[:, 0]
    return replace(draft, confidence_calibration=fit_budgeted_platt(logits, calibration.correct, calibration.reduced, "confidence"))


def why_no_risk(fit: Claims, calibration: Claims) -> str | None:
    """Why hallucination risk cannot be fitted, or `None` if it can.

    Raises:
        FitError: claims of a world and words that people marked are mixed.
    """
    for claims, part in ((fit, "fit"), (calibration, "calibration")):
        if not len(claims):
            return f"none of the answers of the {part} part makes a claim whose truth is known"
        for reduced in (False, True):
            labels = claims.label[claims.reduced == reduced]
            if (part == "calibration" or not reduced) and len(labels) and len(np.unique(labels)) < 2:
                kind = "reduced" if reduced else "whole"
                return f"all {len(labels)} claims of the {part} part under a {kind} cache are {'false' if labels[0] else 'true'}"
    if len(np.unique(fit.label)) < 2:
        return f"all {len(fit)} claims of the fit part have one label"
    if len(np.unique(fit.group)) < 2 * FOLDS:
        return f"the claims of the fit part are of {len(np.unique(fit.group))} groups, at least {2 * FOLDS} are needed"
    if 0 < (np.concatenate([fit.kinds, calibration.kinds]) == "span").mean() < 1:
        raise FitError("claims of a world and words that people marked cannot be fitted together: train one probe set on each")
    return None


def grammar_of(claims: Claims) -> str:
    """The grammar under which claims like these are found again."""
    return WORDS_GRAMMAR if (claims.kinds == "span").all() else WORLD_GRAMMAR


def why_no_strategy(fit: Claims, calibration: Claims) -> str | None:
    """Why strategy states cannot be fitted, or `None` if they can."""
    states = strategy_states(fit, calibration)
    if len(states) >= 2:
        return None
    return f"{len(states)} states have {MIN_STATES} claims with a single cause in both parts; record a world with --interventions"


def why_no_domain(fit: Table, outside: list[Trace]) -> str | None:
    """Why it cannot be told whether a prompt is familiar, or `None` if it can."""
    if not outside:
        return "no prompts from outside were recorded (introspect record --world outside)"
    return None if any(p.image_embedding is not None for p in _prompts(fit)) else "no answer of the fit part has a picture"


def _prompts(table: Table) -> list[PromptInfo]:
    return [a.trace.prompt for a in table.answers]


def _fit_claims(fit: Table, calibration: Table) -> tuple[ClaimProbe, NDArray[np.float64]]:
    """The hallucination probe, and out-of-fold risks of the claims that it was fitted on."""
    internal, prior, fit_logits = fit_risk(fit.claims)
    held = calibration.claims
    calibration_logits = risk_logits(internal, prior, held)
    platt = fit_budgeted_platt(calibration_logits, held.label, held.reduced, "hallucination risk")
    any_false, logits, reduced = _any_false(calibration, platt(calibration_logits, held.reduced))
    probe = ClaimProbe(internal, prior, platt, fit_budgeted_platt(logits, any_false, reduced, "answer-level risk"))
    return probe, platt(fit_logits, fit.claims.reduced)


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
    internal, strength = fit_logistic(internal_matrix(claims), claims.label, claims.group, weights=weights, what="hallucination risk")
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
    return fit_logistic(features, labels, groups, what="confidence")[0]


def _any_false(table: Table, risks: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
    """For answers with claims: whether any is false, the logit of that under independence, whether the cache was reduced."""
    labels, logits, reduced = [], [], []
    for answer in np.unique(table.claims.answer):
        own = table.claims.answer == answer
        labels.append(int(table.claims.label[own].max()))
        logits.append(any_false_logit(risks[own]))
        reduced.append(bool(table.claims.reduced[own][0]))
    return np.array(labels, dtype=np.int8), np.array(logits), np.array(reduced)


def strategy_states(fit: Claims, calibration: Claims) -> list[int]:
    """Indices into `STRATEGIES` of the states with enough labelled claims in both parts."""
    return [
        s for s in range(len(STRATEGIES)) if (fit.strategy == s).sum() >= MIN_STATES and (calibration.strategy == s).sum() >= MIN_STATES
    ]


def _fit_strategy(fit: Claims, calibration: Claims) -> StrategyProbe:
    """The strategy probe on claims with a causal label, its temperature and conformal thresholds."""
    states = strategy_states(fit, calibration)
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
    draft = StrategyProbe(probe, tuple(STRATEGIES[i] for i in states), temperature, ())
    return replace(draft, thresholds=class_thresholds(draft.probabilities(held.heads), held_labels, 1 - COVERAGE))


def _two_outputs(probe: LinearProbe) -> LinearProbe:
    """A binary probe with one output a class."""
    return LinearProbe(
        probe.mean, probe.scale, np.concatenate([0 * probe.weight, probe.weight]), np.concatenate([0 * probe.bias, probe.bias])
    )


def _fit_domain(fit: list[PromptInfo], calibration: list[PromptInfo], outside: list[PromptInfo]) -> Domain:
    """What the fit met, and a novelty probe told apart on the calibration pool's prompts from those outside."""
    pictures = np.array([p.image_embedding for p in fit if p.image_embedding is not None], dtype=np.float64)
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
        "matcher": matcher_of(traces),
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
            "answers_without_a_label": len(table.unlabelled),
            "groups": len(set(table.groups.tolist())),
            "wrong_answers": int((table.correct == 0).sum()),
            "claims": len(table.claims),
            "false_claims": int(table.claims.label.sum()),
            "claims_with_a_cause": int((table.claims.strategy >= 0).sum()),
        }
        for part, table in (("fit", fit), ("calibration", calibration))
    }
