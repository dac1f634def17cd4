"""How few heads are enough: probes that read 1, 2, 4 or 8 of them, and what that costs in AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect_probes.carriers import place_of
from introspect_probes.checkpoint import OTHERS, Checkpoint, Target, feature_names, feature_row
from introspect_probes.dataset import Table
from introspect_probes.features import Shape, head_feature_names
from introspect_probes.fitting import fit_budgeted_platt, fit_logistic
from introspect_probes.linear import LinearProbe
from introspect_probes.metrics import ClusterBootstrap, interval

COUNTS = (1, 2, 4, 8)
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Rows:
    """What a checkpoint is fitted or measured on: features `[rows, names]`, labels, groups, whether caches were reduced."""

    features: Floats
    labels: NDArray[np.int8]
    groups: NDArray[np.str_]
    reduced: NDArray[np.bool_]


def claim_rows(table: Table) -> Rows:
    """One row a claim; label 1 is false."""
    claims = table.claims
    features = np.concatenate([claims.heads, claims.logits, claims.place, claims.kind, claims.budget], axis=1)
    return Rows(features, claims.label, claims.group, claims.reduced)


def answer_rows(table: Table) -> Rows:
    """One row an answer; label 1 is right."""
    features = np.stack(
        [feature_row(np.mean([t.heads for t in a.tokens], axis=0), a.tokens[-1], "", a.trace.prompt) for a in table.answers]
    )
    return Rows(features, table.correct, table.groups, table.reduced)


def fit_sparse(
    fit: Rows, held: Rows, full: Floats, *, target: Target, model: str, shape: Shape, counts: Sequence[int] = COUNTS
) -> list[Checkpoint]:
    """A checkpoint for each count of heads.

    Heads are ranked by the absolute weights that an l1 regression on all of them gives to what is theirs; each count
    then gets a regression of its own on these heads' statistics, the logits, place, kind and budget.

    Args:
        fit: to fit on.
        held: to calibrate and measure on, of other groups.
        full: scores of the whole probe set for `held`, to compare with.
        target: what label 1 means.
        model: fingerprint.
        shape: of the model.
        counts: how many heads.

    Raises:
        FitError: the rows do not allow a fit.
    """
    everything, _ = fit_logistic(fit.features, fit.labels, fit.groups, what=f"sparse {target}")
    order = ranked_heads(everything, shape)
    bootstrap = ClusterBootstrap(held.groups)
    labels = held.labels.astype(np.int64)
    whole = bootstrap.auroc(full, labels)
    without = bootstrap.auroc(_scores(fit, held, kept_columns((), shape), target)[1], labels)
    made = []
    for count in (c for c in counts if c <= len(order)):
        heads = tuple(order[:count])
        columns = kept_columns(heads, shape)
        probe, scores = _scores(fit, held, columns, target)
        own = bootstrap.auroc(scores, labels)
        quality = {
            "measured_on": "the calibration part",
            "rows": len(labels),
            "auroc": interval(*own).as_list(),
            "auroc_all_heads": interval(*whole).as_list(),
            "auroc_no_heads": interval(*without).as_list(),
            "cost": interval(whole[0] - own[0], whole[1] - own[1]).as_list(),
        }
        calibration = fit_budgeted_platt(scores, held.labels, held.reduced, f"sparse {target}")
        made.append(Checkpoint(target, model, shape, heads, _named(probe, columns, shape), float(probe.bias[0]), calibration, quality))
    return made


def ranked_heads(probe: LinearProbe, shape: Shape) -> list[tuple[int, int]]:
    """Heads by the sum of absolute weights of their own statistics, largest first; heads without one are left out."""
    weights = np.zeros((shape.layers, shape.heads))
    for name, weight in zip(head_feature_names(shape), np.abs(probe.weight[0]), strict=False):
        if weight and ".H" in name:
            layer, (head,), _ = place_of(name, shape.heads, shape.kv_heads)
            weights[layer, head] += weight
    order = np.argsort(-weights, axis=None, kind="stable")
    return [(int(i) // shape.heads, int(i) % shape.heads) for i in order if weights.flat[i] > 0]


def kept_columns(heads: Sequence[tuple[int, int]], shape: Shape) -> NDArray[np.int64]:
    """Columns of `feature_names` that need these heads alone: their statistics, their KV heads' budget, and no head's."""
    chosen = set(heads)
    columns = []
    for i, name in enumerate(head_feature_names(shape)):
        layer, members, _ = place_of(name, shape.heads, shape.kv_heads)
        own = ".H" in name or ".K" in name
        if own and any((layer, head) in chosen for head in members):
            columns.append(i)
    first = len(head_feature_names(shape))
    return np.array([*columns, *range(first, first + len(OTHERS))], dtype=np.int64)


def _scores(fit: Rows, held: Rows, columns: NDArray[np.int64], target: str) -> tuple[LinearProbe, NDArray[np.float64]]:
    probe, _ = fit_logistic(fit.features[:, columns], fit.labels, fit.groups, what=f"sparse {target}")
    return probe, np.asarray(probe.logits(held.features[:, columns])[:, 0])


def _named(probe: LinearProbe, columns: NDArray[np.int64], shape: Shape) -> tuple[tuple[str, float, float, float], ...]:
    names = feature_names(shape)
    return tuple(
        (names[column], float(probe.mean[i]), float(probe.scale[i]), float(probe.weight[0, i]))
        for i, column in enumerate(columns)
        if probe.weight[0, i]
    )
