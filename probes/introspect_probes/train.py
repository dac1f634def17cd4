"""`introspect train`: traces to a probe set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from introspect.provenance import provenance
from introspect.types import EffectiveBudget, PromptInfo
from introspect_kernels import feature_schema_hash
from introspect_probes.card import card
from introspect_probes.checkpoint import Checkpoint
from introspect_probes.dataset import Claims, Table, TableBuilder, empty_claims, load_table
from introspect_probes.domain_fit import fit_domain
from introspect_probes.errors import FitError
from introspect_probes.fitting import FOLDS, fit_budgeted_platt, fit_by_cache
from introspect_probes.grammar import WORDS_GRAMMAR, WORLD_GRAMMAR
from introspect_probes.guarantee import caches_of
from introspect_probes.guarantee_fit import with_guarantee
from introspect_probes.labels import read_labelled
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, Platt
from introspect_probes.parts import OUTSIDE_KIND, common_manifest, is_promised, part_of
from introspect_probes.probe_set import FORMAT, ProbeSet
from introspect_probes.published import published_confidence, published_risks, risk_logits
from introspect_probes.reference_fit import MOST, with_reference
from introspect_probes.risk_fit import fit_claims
from introspect_probes.sparse import answer_rows, claim_rows, fit_sparse
from introspect_probes.strategy_fit import COVERAGE, MIN_HELD, MIN_STATES, fit_strategy, strategy_states
from introspect_probes.token_store import TokenStore
from introspect_probes.traces import Trace, matcher_of

_UNCALIBRATED = BudgetedPlatt(Platt(-1.0, 0.0), Platt(-1.0, 0.0))


def train(
    folders: Sequence[Path],
    out: Path,
    *,
    name: str,
    target_risk: float | None = None,
    delta: float = 0.1,
    promise_for: str = "whole",
    sparse: bool = True,
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
        promise_for: under which caches answers are guaranteed: `whole`, `reduced`, or `any`, in the mix that was recorded.
        sparse: also write checkpoints that read 1, 2, 4 and 8 heads (see `checkpoint`), with their cost.

    Raises:
        FitError: the traces cannot support the fit; the message says what to record.
        TraceError: a folder holds no readable traces.
    """
    manifest, caches = common_manifest(folders), caches_of(promise_for)
    with TokenStore() as store:
        read = read_parts(folders, store, has_promise=target_risk is not None)
        check_tables(read.fit, read.calibration)
        probes = fit_probe_set(read.fit, read.calibration, read.outside, _manifest(name, manifest, read.budgets))
        if target_risk is not None:
            probes = with_guarantee(probes, read.fit, read.promised, target_risk=target_risk, delta=delta, caches=caches)
        probes = with_reference(probes, load_table(_drawn_again(folders, read.calibration)))
        checkpoints = sparse_variants(probes, read.fit, read.calibration) if sparse else []
    probes = replace(probes, manifest={**probes.manifest, "sparse": {str(len(c.heads)): c.quality for c in checkpoints}})
    probes.save(out)
    for checkpoint in checkpoints:
        checkpoint.save(out / f"checkpoint-{len(checkpoint.heads)}.json")
    (out / "card.md").write_text(card(probes), encoding="utf-8")
    return probes


@dataclass(frozen=True)
class Read:
    """What a fit reads of trace folders, by part; `promised` is the guarantee's share of the calibration part."""

    fit: Table
    calibration: Table
    promised: Table
    outside: list[Trace]
    budgets: list[EffectiveBudget]


def read_parts(folders: Sequence[Path], store: TokenStore, *, has_promise: bool) -> Read:
    """Read folders once, trace by trace; what stays in memory is a row of features a claim, and the prompts.

    Raises:
        TraceError: a folder holds no readable traces, or a trace holds a statistic that is not finite.
    """
    fit, calibration, promised = (TableBuilder(store) for _ in range(3))
    outside: list[Trace] = []
    budgets: list[EffectiveBudget] = []
    traces = chain.from_iterable(read_labelled(folder, wanted=lambda entry: part_of(entry) != "test") for folder in folders)
    for trace in tqdm(traces, desc="reading traces", unit="answer", leave=False):
        part = part_of(trace)
        if trace.kind == OUTSIDE_KIND:
            outside.append(replace(trace, steps=(), hidden=None, picture=None))
            continue
        budgets.append(trace.prompt.budget)
        (fit if part == "fit" else promised if has_promise and is_promised(trace) else calibration).add(trace)
    return Read(fit.table(), calibration.table(), promised.table(), outside, budgets)


def _drawn_again(folders: Sequence[Path], calibration: Table, seed: int = 0) -> Iterator[Trace]:
    """Some answers of a table whose steps were not kept, read once more: for a reference there need not be all of them."""
    rng = np.random.default_rng(seed)
    ids = np.array([a.trace.id for a in calibration.answers])
    kinds = [np.flatnonzero(calibration.reduced == reduced) for reduced in (False, True)]
    drawn = {str(ids[i]) for rows in kinds for i in rng.permutation(rows)[:MOST]}
    return chain.from_iterable(read_labelled(folder, wanted=lambda entry: entry.id in drawn) for folder in folders)


def sparse_variants(probes: ProbeSet, fit: Table, calibration: Table) -> list[Checkpoint]:
    """Checkpoints of few heads: of hallucination risk where the probe set has it, else of confidence."""
    model = {"model": probes.manifest["model"]["fingerprint"], "shape": probes.shape}
    if probes.claims is not None:
        full = risk_logits(probes.claims.internal, probes.claims.prior, calibration.claims)
        return fit_sparse(claim_rows(fit), claim_rows(calibration), full, target="hallucination_risk", **model)
    full = published_confidence(probes, calibration)
    return fit_sparse(answer_rows(fit), answer_rows(calibration), full, target="confidence", **model)


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
        claims, fit_risks = fit_claims(fit, calibration)
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
        strategy=None if "strategy" in absent else fit_strategy(fit.claims, calibration.claims),
        domain=None if "in_domain" in absent else fit_domain(_prompts(fit), _prompts(calibration), [t.prompt for t in outside]),
    )
    features = calibration.confidence_features(published_risks(draft, calibration.claims))
    logits = draft.confidence.logits(features, calibration.reduced)
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
    return (
        f"{len(states)} states have {MIN_STATES} claims with a single cause to fit on and {MIN_HELD} to calibrate on; "
        "record a world with --interventions"
    )


def why_no_domain(fit: Table, outside: list[Trace]) -> str | None:
    """Why it cannot be told whether a prompt is familiar, or `None` if it can."""
    if not outside:
        return "no prompts from outside were recorded (introspect record --world outside)"
    return None if any(p.image_embedding is not None for p in _prompts(fit)) else "no answer of the fit part has a picture"


def _prompts(table: Table) -> list[PromptInfo]:
    return [a.trace.prompt for a in table.answers]


def _fit_confidence(table: Table, risks: NDArray[np.float64]) -> BudgetedProbe:
    """Fitted on whole answers and on one random beginning of each, so that it means something from the first token on."""
    rng = np.random.default_rng(0)
    whole = table.confidence_features(risks)
    begun = table.confidence_features(risks, cut=lambda count: int(rng.integers(1, count + 1)))
    longer = np.array([len(a.tokens) > 1 for a in table.answers])
    features = np.concatenate([whole, begun[longer]])
    labels, groups, reduced = (np.concatenate([each, each[longer]]) for each in (table.correct, table.groups, table.reduced))
    return fit_by_cache(features, labels, groups, reduced, what="confidence")[0]


def _manifest(name: str, traces: dict[str, Any], budgets: Sequence[EffectiveBudget]) -> dict[str, Any]:
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
