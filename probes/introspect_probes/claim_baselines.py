"""What a hallucination probe is compared with, claim by claim: higher scores for false claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from introspect_probes.answer_baselines import text_probabilities
from introspect_probes.baseline_rows import ONE_WORD
from introspect_probes.claim_probe import ClaimProbe
from introspect_probes.dataset import Claims, Table
from introspect_probes.fitting import fit_by_cache
from introspect_probes.linear import BudgetedProbe
from introspect_probes.published import risk_logits
from introspect_probes.training_free import SCORES

Floats = NDArray[np.floating]
_POSITIONS = (1, 2, 4, 8, 16, 32)
L_STRENGTHS = (0.03, 0.1, 1.0)
"""Candidate inverse penalties of baselines that read few numbers."""


def claim_scores(probe: ClaimProbe, fit: Table, test: Table) -> dict[str, Floats]:
    """Scores of every test claim: baselines first, the probe last. What must be fitted is fitted on `fit` and tuned in the same way.

    NaN where a score cannot be had: L+H, and attention on top of it, are fitted on the answers that hold hidden states and
    score those that do; agreement is of answers that were sampled.
    """

    def fitted(matrix_of: Callable[[Table], Floats], strengths: Sequence[float] | None = L_STRENGTHS) -> Floats:
        return fitted_by_cache(matrix_of(fit), fit.claims, strengths).logits(matrix_of(test), test.claims.reduced)

    kinds = sorted(set(fit.claims.kinds.tolist()))
    conditions = sorted(set(fit.claims.condition.tolist()))
    logits = test.claims.logits
    scores = {
        "position": fitted(lambda t: np.concatenate([t.claims.place[:, [0, 1, 3]], t.claims.budget], 1)),
        "position and repetition": fitted(lambda t: np.concatenate([t.claims.place, t.claims.budget], 1)),
        "length": fitted(lambda t: np.concatenate([lengths(t), t.claims.budget], 1)),
        "question type": fitted(lambda t: np.concatenate([t.claims.kind, t.claims.budget], 1)),
        "slot": fitted(lambda t: np.concatenate([slots(t.claims, kinds), t.claims.budget], 1)),
        "budget and policy": fitted(lambda t: one_hot(t.claims.condition, conditions)),
        "question and answer text": text_probabilities(texts(fit), fit.claims.label, texts(test)),
        "max probability": -logits[:, 3].astype(float),
        "mean logprob": -logits[:, 8].astype(float),
        "entropy": logits[:, 1].astype(float),
        **word_scores(test),
        "L": fitted(lambda t: logit_matrix(t.claims)),
    }
    scores["agreement of samples"] = -test.agreement[test.claims.answer]
    seen, held = fit.where(fit.has_hidden), test.where(test.has_hidden)
    if len(np.unique(seen.claims.label)) == 2 and len(held.claims):
        for name, matrix_of in (("L+H", _with_hidden), ("L+H+attention", _with_all)):
            own = fitted_by_cache(matrix_of(seen), seen.claims, None)
            scores[name] = np.full(len(test.claims), np.nan)
            scores[name][test.has_hidden[test.claims.answer]] = own.logits(matrix_of(held), held.claims.reduced)
    scores["attention alone"] = fitted(lambda t: t.claims.heads, None)
    scores["probe"] = risk_logits(probe.internal, probe.prior, test.claims)
    return scores


def fitted_by_cache(features: Floats, claims: Claims, strengths: Sequence[float] | None) -> BudgetedProbe:
    """A baseline, fitted as the probe is: under the whole cache on claims of it alone, where there are enough."""
    return fit_by_cache(features, claims.label, claims.group, claims.reduced, strengths=strengths)[0]


def logit_matrix(claims: Claims) -> Floats:
    """What the baseline L reads: all logit statistics with position, repetition, type and budget."""
    return np.concatenate([claims.logits, claims.place, claims.kind, claims.budget], axis=1)


def _with_hidden(table: Table) -> Floats:
    return np.concatenate([logit_matrix(table.claims), hidden_matrix(table)], axis=1)


def _with_all(table: Table) -> Floats:
    return np.concatenate([_with_hidden(table), table.claims.heads], axis=1)


def hidden_matrix(table: Table) -> Floats:
    """Hidden states behind every layer of the query that predicted each claim's word, `[claims, layers * width]`."""
    rows = []
    for answer, token in zip(table.claims.answer, table.claims.token, strict=True):
        own = table.answers[answer].baselines
        if own.hidden is not None:
            rows.append(own.hidden[own.place[int(token)]])
    return np.stack(rows)


def lengths(table: Table) -> Floats:
    """Words of each claim's answer, and their logarithm: known only when it is over, which favours this baseline."""
    count = np.array([len(table.answers[a].tokens) for a in table.claims.answer], dtype=np.float32)
    return np.stack([count, np.log(count)], axis=1)


def slots(claims: Claims, kinds: Sequence[str]) -> Floats:
    """Type and position together: one column for each pair of a claim's type and its bin of position."""
    bins = np.digitize(claims.place[:, 0], _POSITIONS)
    names = [f"{kind}-{place}" for kind in kinds for place in range(len(_POSITIONS) + 1)]
    return one_hot(np.array([f"{kind}-{place}" for kind, place in zip(claims.kinds.tolist(), bins, strict=True)]), names)


def one_hot(values: NDArray[np.str_], names: Sequence[str]) -> Floats:
    """`[rows, names]`; all zero where a value is none of them."""
    return np.array([[value == name for name in names] for value in values.tolist()], dtype=np.float32)


def texts(table: Table) -> list[str]:
    """For each claim the question and the answer's words up to the one that decides it."""
    found = []
    for answer, token in zip(table.claims.answer, table.claims.token, strict=True):
        own = table.answers[answer]
        found.append(f"{own.trace.question} | {own.baselines.text(int(token))}")
    return found


def word_scores(table: Table) -> dict[str, Floats]:
    """Training-free scores of each claim's word alone, turned so that higher speaks for a false claim."""
    rows = []
    for answer, token in zip(table.claims.answer, table.claims.token, strict=True):
        own = table.answers[answer].baselines
        rows.append(own.scores[own.place[int(token)]])
    found = dict(zip(ONE_WORD, np.stack(rows, axis=1), strict=True))
    return {SCORES[name].title: -SCORES[name].sign * value for name, value in found.items() if np.isfinite(value).all()}
