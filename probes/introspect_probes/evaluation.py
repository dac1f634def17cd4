"""`introspect evaluate`: a probe set against its baselines on traces it never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from introspect.provenance import provenance
from introspect.types import PromptInfo
from introspect_probes.answer_evaluation import evaluate_answers
from introspect_probes.card import card
from introspect_probes.carriers import carriers
from introspect_probes.claim_evaluation import evaluate_claims
from introspect_probes.dataset import Table, TableBuilder
from introspect_probes.domain import Domain
from introspect_probes.errors import TraceError
from introspect_probes.guarantee import Guarantee
from introspect_probes.html_report import html_report
from introspect_probes.labels import read_labelled
from introspect_probes.metrics import weighted_auroc
from introspect_probes.parts import OUTSIDE_KIND, part_of
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import published_confidence, published_risks
from introspect_probes.strategy_evaluation import evaluate_strategy
from introspect_probes.telling_cases import telling_cases
from introspect_probes.token_store import TokenStore

Floats = NDArray[np.floating]


def evaluate(probes: ProbeSet, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Evaluate a probe set and write `report.json`, `report.html` and `card.md`.

    The baselines that need fitting are fitted on the same part of the same traces
    as the probes were, and everything is scored on the test part only. What the probe set
    or the traces do not have is left out of the report and named under `absent`. Traces are
    read one by one, so that folders may be larger than memory.

    Returns:
        The report.

    Raises:
        TraceError: the folders hold no labelled answers to test on, or none to fit the baselines on.
    """
    with TokenStore() as store:
        read = read_parts(folders, store)
        check_answers(read.fit, read.test)
        report, confidence = _report(probes, read)
    cases = telling_cases(probes, read.test, confidence, folders)
    report["cases"] = [case.facts() for case in cases]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(html_report(report, cases), encoding="utf-8")
    (out / "card.md").write_text(card(probes), encoding="utf-8")
    return report


@dataclass(frozen=True)
class Read:
    """What an evaluation reads of trace folders, by part, with the test part's prompts from outside the world."""

    fit: Table
    calibration: Table
    test: Table
    outside: list[PromptInfo]


def read_parts(folders: Sequence[Path], store: TokenStore) -> Read:
    """Read folders once, trace by trace; what stays in memory is a row of features and scores a claim, and the prompts.

    Raises:
        TraceError: a folder holds no readable traces, or a trace holds a statistic that is not finite.
    """
    tables = {part: TableBuilder(store, baselines=part != "calibration") for part in ("fit", "calibration", "test")}
    outside: list[PromptInfo] = []
    traces = chain.from_iterable(read_labelled(folder) for folder in folders)
    for trace in tqdm(traces, desc="reading traces", unit="answer", leave=False):
        if trace.kind != OUTSIDE_KIND:
            tables[part_of(trace)].add(trace)
        elif part_of(trace) == "test":
            outside.append(trace.prompt)
    return Read(tables["fit"].table(), tables["calibration"].table(), tables["test"].table(), outside)


def _report(probes: ProbeSet, read: Read) -> tuple[dict[str, Any], Floats]:
    """The report but for its cases, and the confidence of every test answer."""
    fit, calibration, test = read.fit, read.calibration, read.test
    risks = published_risks(probes, test.claims)
    confidence = published_confidence(probes, test)
    conditions = sorted(set(test.conditions.tolist()))
    absent = dict(probes.manifest.get("absent", {})) | absent_baselines(fit, test)
    report: dict[str, Any] = {
        "probe_set": probes.name,
        "conditions": {c: _condition_facts(test, c) for c in conditions},
        "answers": evaluate_answers(fit, test, confidence, conditions),
        "carriers": carriers(probes),
        "absent": absent,
        "provenance": provenance(),
    }
    if probes.claims is not None and len(test.claims) and len(fit.claims):
        found = evaluate_claims(probes.claims, fit, calibration, test, risks, conditions)
        report["claims"], report["claims_pooled"] = found.conditions, found.pooled
    if probes.strategy is not None and len(test.claims):
        met = fit.claims.group[fit.claims.strategy >= 0]
        report["strategy"] = evaluate_strategy(probes.strategy, test, set(met.tolist()))
    if probes.domain is not None:
        report["domain"] = evaluate_domain(probes.domain, test, read.outside)
    if probes.guarantee is not None:
        report["guarantee"] = evaluate_guarantee(probes.guarantee, test, confidence)
    return report, confidence


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


def absent_baselines(fit: Table, test: Table) -> dict[str, str]:
    """Baselines that these traces do not allow, in all or some conditions, and why."""
    absent = {}
    held = test.has_hidden if fit.has_hidden.any() else np.zeros(len(test.answers), dtype=np.bool_)
    if without := _conditions_of(test, ~held):
        absent["hidden states (L+H)"] = f"{without}: not every answer holds them; record with --hidden"
    if without := _conditions_of(test, np.isnan(test.agreement)):
        absent["agreement of samples"] = f"{without}: not every answer was sampled; record with --samples 10"
    return absent


def _conditions_of(test: Table, mask: NDArray[np.bool_]) -> str:
    return ", ".join(sorted(set(test.conditions[mask].tolist())))


def evaluate_guarantee(guarantee: Guarantee, test: Table, confidence: Floats) -> dict[str, Any]:
    """The guarantee, and what became of it on the test answers that it covers."""
    covered = np.array([guarantee.covers(is_reduced=bool(reduced)) for reduced in test.reduced])
    accepted = covered & (confidence >= guarantee.threshold)
    return {
        **guarantee.as_dict(),
        "test_answers": int(covered.sum()),
        "test_accepted": int(accepted.sum()),
        "test_risk": round(float((test.correct[accepted] == 0).mean()), 4) if accepted.any() else None,
    }


def evaluate_domain(domain: Domain, test: Table, outside: list[PromptInfo]) -> dict[str, Any]:
    """How well prompts outside the world are told apart, on pictures and words the fit never met."""
    inside = np.array([domain.probability(a.trace.prompt) for a in test.answers if a.trace.condition == "full"])
    if not outside or not len(inside):
        return {"outside": 0}
    out = np.array([domain.probability(prompt) for prompt in outside])
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
