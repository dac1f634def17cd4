"""`introspect evaluate`: a probe set against its baselines on traces it never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.provenance import provenance
from introspect_probes.answer_evaluation import evaluate_answers
from introspect_probes.card import card
from introspect_probes.carriers import carriers
from introspect_probes.claim_evaluation import evaluate_claims
from introspect_probes.dataset import Table, load_table
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
from introspect_probes.traces import Trace

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
    fit, calibration, test = (load_table(t for t in inside if part_of(t) == part) for part in ("fit", "calibration", "test"))
    check_answers(fit, test)
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
        report["strategy"] = evaluate_strategy(probes.strategy, test)
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
    """The guarantee, and what became of it on test answers."""
    accepted = confidence >= guarantee.threshold
    return {
        **guarantee.as_dict(),
        "test_answers": len(test.answers),
        "test_accepted": int(accepted.sum()),
        "test_risk": round(float((test.correct[accepted] == 0).mean()), 4) if accepted.any() else None,
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
