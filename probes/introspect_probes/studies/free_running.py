"""Claims in free-running answers: does a frozen probe set tell false claims better than L where it was not fitted?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.provenance import provenance
from introspect_probes.claim_baselines import L_STRENGTHS, fitted_by_cache, logit_matrix
from introspect_probes.claim_evaluation import compare, within_position_and_type
from introspect_probes.dataset import Claims, Table, load_table
from introspect_probes.errors import ProbesError
from introspect_probes.labels import read_labelled
from introspect_probes.linear import BudgetedProbe
from introspect_probes.metrics import probability_metrics
from introspect_probes.parts import OUTSIDE_KIND, part_of
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import published_confidence, published_risks, risk_logits
from introspect_probes.record import record
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.shifts import SHIFTS, Shift, get_shift
from introspect_probes.traces import read_traces

SEED = 202


def free_running(
    out: Path,
    probes: ProbeSet,
    traces: Sequence[Path],
    *,
    model: str = "embedded",
    arms: Sequence[str] = tuple(SHIFTS),
    n: int = 400,
    work: Path = Path("runs/studies/free-running"),
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Run the study; every arm is a step with a result file of its own, and steps that are done are not repeated.

    Args:
        out: folder of the result files.
        probes: the frozen probe set.
        traces: the folders that it was fitted on; L is fitted on their fit part.
        model: what the probe set is of.
        arms: see `SHIFTS`.
        n: cases an arm.
        work: folder of the recorded traces, which are not committed.
        seed: of the cases.

    Returns:
        The results, one a step.

    Raises:
        ProbesError: an unknown arm, a probe set without hallucination risk, or nothing to fit L on.
    """
    if probes.claims is None:
        raise ProbesError(f"the probe set {probes.name} has no hallucination risk; train one on answers with claims")
    out.mkdir(parents=True, exist_ok=True)
    request = {"n": n, "seed": seed, "probe_set": probes.name}
    base: BudgetedProbe | None = None
    engine: Engine | None = None
    results = []
    for shift in [get_shift(name) for name in arms]:
        path, folder = out / f"{shift.name}.json", work / shift.name
        if (found := filed(path, request)) is not None:
            results.append(found)
            continue
        base = base or fit_base(traces)
        engine = engine or Engine(load_model(model))
        record(shift.cases(n, seed=seed), engine, folder, budgets=[shift.budget], total=n)
        test = load_table(t for t in read_traces(folder) if t.steps)
        silent = n - len(test.answers)  # under the tightest budgets an answer may end before its first word
        result = {**judge(shift, probes, base, test), "silent": silent, "request": request, "provenance": provenance()}
        file_result(path, result)
        results.append(result)
    return results


def fit_base(traces: Sequence[Path]) -> BudgetedProbe:
    """L: l1 regressions, by cache as the probes are, on all logit statistics with position, repetition, type and budget.

    Raises:
        ProbesError: the folders hold no claims of the fit part.
    """
    known = (t for t in chain.from_iterable(read_labelled(f) for f in traces) if t.kind != OUTSIDE_KIND and part_of(t) == "fit")
    claims = load_table(known).claims
    if not len(claims):
        raise ProbesError("L is fitted on the traces that the probes were fitted on: give their folders")
    return fitted_by_cache(logit_matrix(claims), claims, L_STRENGTHS)


def judge(shift: Shift, probes: ProbeSet, base: BudgetedProbe, test: Table) -> dict[str, Any]:
    """The probe set and L on one arm.

    Raises:
        ProbesError: the probe set has no hallucination risk, or all claims have one label.
    """
    claims: Claims = test.claims
    if probes.claims is None or len(np.unique(claims.label)) < 2:
        raise ProbesError(f"{shift.name}: expected hallucination risk, and claims both true and false; record more cases")
    scores: dict[str, NDArray[np.floating]] = {
        "max probability": -claims.logits[:, 3].astype(np.float64),
        "L": base.logits(logit_matrix(claims), claims.reduced),
        "probe": risk_logits(probes.claims.internal, probes.claims.prior, claims),
    }
    cases = np.array([test.answers[a].trace.case_id for a in claims.answer])
    risks, confidence = published_risks(probes, claims), published_confidence(probes, test)
    return {
        "benchmark": "study free-running",
        "arm": shift.name,
        "degrades": shift.degrades,
        "kept": round(float(claims.budget[:, 0].mean()), 4),
        "answers": len(test.answers),
        "right": round(float(test.correct.mean()), 4),
        "claims": compare(scores, claims, cases, macro=True),
        "within_position_and_type": within_position_and_type(scores, claims),
        "risk": probability_metrics(risks, claims.label, claims.group),
        "confidence": probability_metrics(confidence, test.correct.astype(np.int64), test.groups, selective=True),
    }
