"""Fitting hallucination risk: an internal probe and a prior whose logits add up (HaloProbe, arXiv 2604.06165)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from introspect_probes.claim_probe import ClaimProbe, any_false_logit
from introspect_probes.dataset import Claims, Table
from introspect_probes.fitting import balancing_weights, fit_budgeted_platt, fit_by_cache, out_of_fold_by_cache
from introspect_probes.linear import BudgetedProbe
from introspect_probes.published import internal_matrix, prior_matrix, risk_logits


def fit_claims(fit: Table, calibration: Table) -> tuple[ClaimProbe, NDArray[np.float64]]:
    """The hallucination probe, and out-of-fold risks of the claims that it was fitted on."""
    internal, prior, fit_logits = fit_risk(fit.claims)
    held = calibration.claims
    calibration_logits = risk_logits(internal, prior, held)
    platt = fit_budgeted_platt(calibration_logits, held.label, held.reduced, "hallucination risk")
    any_false, logits, reduced = _any_false(calibration, platt(calibration_logits, held.reduced))
    probe = ClaimProbe(internal, prior, platt, fit_budgeted_platt(logits, any_false, reduced, "answer-level risk"))
    return probe, platt(fit_logits, fit.claims.reduced)


def fit_risk(claims: Claims) -> tuple[BudgetedProbe, BudgetedProbe, NDArray[np.float64]]:
    """The factorised hallucination probe, and out-of-fold logits of the rows it was fitted on.

    The internal probe is fitted with both labels of equal weight at every position,
    repetition and kind, so that these tell it nothing, and with whole and reduced caches
    of equal weight, however many conditions reduced them; the prior is fitted on what
    places tell alone (HaloProbe, arXiv 2604.06165). Their logits add up.
    """
    weights = balancing_weights(balance_cells(claims), claims.label) * equal_shares(claims.reduced)
    rows = claims.label, claims.group, claims.reduced
    internal, strengths = fit_by_cache(internal_matrix(claims), *rows, weights=weights, what="hallucination risk")
    prior, prior_strengths = fit_by_cache(prior_matrix(claims), *rows, strengths=(0.1, 1.0))
    logits = out_of_fold_by_cache(internal_matrix(claims), *rows, strengths, weights)
    logits += out_of_fold_by_cache(prior_matrix(claims), *rows, prior_strengths)
    return internal, prior, logits


def equal_shares(reduced: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights of rows by which those of reduced and of whole caches count the same in sum, if there are both."""
    share = reduced.mean()
    return np.where(reduced, 0.5 / share, 0.5 / (1 - share)) if 0 < share < 1 else np.ones(len(reduced))


def balance_cells(claims: Claims) -> list[tuple[object, ...]]:
    """Position (in six bins), repetition and kind of each claim."""
    bins = np.digitize(claims.place[:, 0], (1, 4, 8, 16, 32))
    return [(int(b), int(r), str(k), c < 1) for b, r, k, c in zip(bins, claims.place[:, 2], claims.kinds, claims.budget[:, 0], strict=True)]


def _any_false(table: Table, risks: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.bool_]]:
    """For answers with claims: whether any is false, the logit of that under independence, whether the cache was reduced."""
    labels, logits, reduced = [], [], []
    for answer in np.unique(table.claims.answer):
        own = table.claims.answer == answer
        labels.append(int(table.claims.label[own].max()))
        logits.append(any_false_logit(risks[own]))
        reduced.append(bool(table.claims.reduced[own][0]))
    return np.array(labels, dtype=np.int8), np.array(logits), np.array(reduced)
