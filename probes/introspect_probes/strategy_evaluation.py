"""The strategy probe against causal labels, beside what these labels themselves are worth."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from introspect_probes.dataset import Claims, Table
from introspect_probes.metrics import ClusterBootstrap, interval
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_probe import StrategyProbe

MIN_OF_STATE = 10
"""A template is scored on its own with this many claims of at least two states."""
Labels = NDArray[np.int64]
Templates = NDArray[np.str_]


def evaluate_strategy(probe: StrategyProbe, test: Table, met: Collection[str] = ()) -> dict[str, Any]:
    """Agreement with causal labels, over all claims and within templates.

    A question's type gives most states away, so that the figure to read is the one within templates: macro-F1 of each template
    in which several states occur, averaged. The ceiling is the same figure of labels from one half of the donors
    against labels from the other half, on the same claims.

    Args:
        probe: the probe.
        test: answers that it was not fitted on.
        met: groups that it was fitted on. Pools differ in their pictures and not in the people that are asked about, and whether
            a person was taught can be learnt by heart: `within_templates_unmet` leaves these groups out.
    """
    claims = test.claims
    measured = claims.where(claims.strategy >= -1)
    templates = np.array([test.answers[a].trace.kind for a in claims.answer])
    known = [STRATEGIES.index(s) for s in probe.states]
    chosen = np.isin(claims.strategy, known)
    rows, templates = claims.where(chosen), templates[chosen]
    if not len(rows):
        return {"claims": 0}
    labels = np.array([known.index(s) for s in rows.strategy])
    probabilities = probe.probabilities(rows.heads)
    predicted = probabilities.argmax(1)
    sets = probabilities >= np.array(probe.thresholds)
    single = sets.sum(1) == 1
    kinds = {k: int(np.bincount(labels[rows.kinds == k]).argmax()) for k in set(rows.kinds.tolist())}
    both = (measured.halves >= 0).all(1)
    unmet = ~np.isin(rows.group, list(met))
    return {
        "measured": len(measured),
        "claims": len(rows),
        "counts": {probe.states[i]: int((labels == i).sum()) for i in range(len(known))},
        "macro_f1": round(float(f1_score(labels, predicted, average="macro")), 4),
        "accuracy": round(float((predicted == labels).mean()), 4),
        "type_only_macro_f1": round(float(f1_score(labels, [kinds[k] for k in rows.kinds.tolist()], average="macro")), 4),
        "label_agreement_across_donors": round(float((measured.halves[both, 0] == measured.halves[both, 1]).mean()), 4),
        "within_templates": _within_templates(labels, predicted, rows, templates, known),
        "within_templates_unmet": _within_templates(labels[unmet], predicted[unmet], rows.where(unmet), templates[unmet], known),
        "set_coverage": {probe.states[i]: round(float(sets[labels == i, i].mean()), 4) for i in range(len(known)) if (labels == i).any()},
        "singletons": round(float(single.mean()), 4),
        "accuracy_of_singletons": round(float((predicted == labels)[single].mean()), 4) if single.any() else None,
    }


def _within_templates(labels: Labels, predicted: Labels, rows: Claims, templates: Templates, known: list[int]) -> dict[str, Any]:
    """Macro-F1 within templates, its ceiling and their ratio, with intervals from a bootstrap of groups."""
    shown = [t for t in sorted(set(templates.tolist())) if (np.bincount(labels[templates == t]) >= MIN_OF_STATE).sum() >= 2]
    if not shown:
        return {"templates": {}}
    halves = np.array([[known.index(s) if s in known else -1 for s in pair] for pair in rows.halves])
    measured = np.array([pair.min() >= 0 for pair in halves], dtype=np.bool_)
    bootstrap = ClusterBootstrap(rows.group)

    def mean_f1(truth: Labels, guess: Labels, usable: NDArray[np.bool_]) -> Callable[[Labels], float]:
        def metric(drawn: Labels) -> float:
            parts = [drawn[usable[drawn] & (templates[drawn] == t)] for t in shown]
            return float(np.mean([macro_f1(truth[p], guess[p]) for p in parts])) if all(len(p) for p in parts) else float("nan")

        return metric

    own = mean_f1(labels, predicted, np.ones(len(labels), dtype=np.bool_))
    ceiling = mean_f1(halves[:, 0], halves[:, 1], measured)
    every = np.arange(len(labels))
    drawn = {"macro_f1": bootstrap.draws(own), "ceiling": bootstrap.draws(ceiling)}
    values = {"macro_f1": own(every), "ceiling": ceiling(every)}
    found = {name: interval(values[name], drawn[name]).as_list() for name in values}
    ratio = interval(values["macro_f1"] / values["ceiling"], drawn["macro_f1"] / drawn["ceiling"]).as_list()
    parts = {t: np.flatnonzero(templates == t) for t in shown}
    return {
        **found,
        "of_ceiling": ratio,
        "with_both_halves": int(measured.sum()),
        "templates": {t: _template(labels[p], predicted[p], halves[p][measured[p]], known) for t, p in parts.items()},
    }


def _template(labels: Labels, predicted: Labels, halves: Labels, known: list[int]) -> dict[str, Any]:
    """One template: its macro-F1 and ceiling, and what each state has of claims and of F1."""
    states, counts = np.unique(labels, return_counts=True)
    scores = f1_score(labels, predicted, labels=states, average=None, zero_division=0)
    return {
        "claims": len(labels),
        "macro_f1": round(float(np.mean(scores)), 4),
        "ceiling": round(macro_f1(halves[:, 0], halves[:, 1]), 4) if len(halves) else None,
        "states": {
            STRATEGIES[known[state]]: {"claims": int(count), "f1": round(float(score), 4)}
            for state, count, score in zip(states, counts, scores, strict=True)
        },
    }


def macro_f1(truth: Labels, guess: Labels) -> float:
    """Mean F1 over the states that occur among the true ones."""
    return float(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0))
