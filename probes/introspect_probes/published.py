"""What a probe set publishes of whole tables: the numbers that a session gives answer by answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from introspect_probes.dataset import Claims, Table
from introspect_probes.linear import BudgetedProbe
from introspect_probes.probe_set import ProbeSet


def published_confidence(probes: ProbeSet, table: Table) -> NDArray[np.float64]:
    """The confidence of every answer of a table as a session publishes it."""
    logits = probes.confidence.logits(table.confidence_features(published_risks(probes, table.claims)), table.reduced)
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


def internal_matrix(claims: Claims) -> NDArray[np.float32]:
    """Rows of `probe_set.internal_features`."""
    return np.concatenate([claims.heads, claims.logits, claims.kind], axis=1)


def prior_matrix(claims: Claims) -> NDArray[np.float32]:
    """Rows of `probe_set.prior_features`."""
    return np.concatenate([claims.place, claims.kind, claims.budget], axis=1)


def risk_logits(internal: BudgetedProbe, prior: BudgetedProbe, claims: Claims) -> NDArray[np.float64]:
    """Sum of the internal probe's and the prior's logits."""
    return internal.logits(internal_matrix(claims), claims.reduced) + prior.logits(prior_matrix(claims), claims.reduced)
