"""Choosing the threshold of a `Guarantee`: MAPIE's Learn-then-Test on one random answer of each independent group."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
from mapie.risk_control import BinaryClassificationController, precision
from numpy.typing import NDArray
from scipy.stats import binom

from introspect_probes.dataset import Table
from introspect_probes.errors import FitError
from introspect_probes.guarantee import Caches, Guarantee
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import published_confidence

Floats = NDArray[np.floating]
GRID = np.round(np.arange(0.99, 0.0, -0.01), 2)
"""Thresholds, strictest first; preset, so that no label chooses them."""
MOST = 100_000
"""Accepted answers; what would need more than these is not told."""


def choose_threshold(
    confidence: Floats,
    correct: NDArray[np.integer],
    groups: NDArray[np.str_],
    reference: Floats,
    *,
    target_risk: float,
    delta: float,
    seed: int = 0,
) -> Guarantee:
    """The smallest threshold over which at most `target_risk` of the answers are wrong, with probability 1 - `delta`.

    Every threshold's hypothesis "more are wrong" is tested with the Hoeffding-Bentkus p-value among the accepted
    answers, from the strictest on, until one cannot be rejected (fixed sequence). The sequence begins at the
    strictest threshold at which, judging by `reference`, enough answers will be accepted for a rejection to be
    possible at all; labels and confidences of the test play no part in that.

    Args:
        confidence: `[answers]`, as published, of answers that no probe was fitted or calibrated on.
        correct: 1 right, 0 wrong.
        groups: independent groups; one random answer of each is used.
        reference: confidences of other answers, such as those of the fit.
        target_risk: largest share of wrong answers among the accepted, alpha.
        delta: chance of a wrong choice.
        seed: of the random answers.

    Raises:
        FitError: there are too few groups, or no threshold can be shown to keep the promise.
    """
    if not (0 < target_risk < 1 and 0 < delta < 1):
        raise FitError(f"expected a target risk and a delta between 0 and 1, got {target_risk} and {delta}")
    rows = one_of_each(groups, seed)
    fewest = math.ceil(math.log(delta) / math.log1p(-target_risk))
    share = np.array([float((reference >= threshold).mean()) for threshold in GRID])
    possible = np.flatnonzero(share * len(rows) >= 2 * fewest)
    if not len(possible):
        raise FitError(
            f"a guarantee of {target_risk:.1%} at delta {delta:g} needs at least {2 * fewest} groups whose answers are accepted, there are "
            f"{len(rows)} groups in all; record more groups, or give a larger --target-risk or --delta"
        )
    grid = GRID[possible[0] :]
    chosen, right = np.asarray(confidence)[rows], np.asarray(correct)[rows]
    controller = BinaryClassificationController(
        lambda values: np.column_stack([1 - values, values]),
        precision,
        1 - target_risk,
        confidence_level=1 - delta,
        list_predict_params=grid,
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no threshold was found is said below, in our words
        controller.calibrate(chosen, right)
    valid = np.asarray(controller.valid_predict_params, dtype=float)
    if not len(valid):
        accepted = chosen >= grid[0]
        count, wrong = int(accepted.sum()), int((right[accepted] == 0).sum())
        raise FitError(
            f"no threshold can be shown to keep wrong answers under {target_risk:.1%} with probability {1 - delta:.0%}: of the "
            f"{count} answers with a confidence of at least {grid[0]:g}, one of each of {len(rows)} groups, {wrong} are wrong; "
            f"{_remedy(count, wrong, len(rows), target_risk, delta)}"
        )
    threshold = float(valid.min())
    accepted = chosen >= threshold
    return Guarantee(target_risk, delta, threshold, len(rows), int(accepted.sum()), int((right[accepted] == 0).sum()))


def needed(accepted: int, wrong: int, target_risk: float, delta: float) -> int | None:
    """How many accepted answers would show that fewer than `target_risk` are wrong, if as large a share were wrong as are.

    By the binomial p-value that the tests use. `None` where no number would, or more than `MOST`.
    """
    counts = np.arange(max(accepted, 1), MOST)
    shown = binom.cdf(np.ceil(counts * (wrong / max(accepted, 1)) - 1e-9), counts, target_risk) <= delta
    return int(counts[shown.argmax()]) if shown.any() else None


def _remedy(accepted: int, wrong: int, groups: int, target_risk: float, delta: float) -> str:
    enough = needed(accepted, wrong, target_risk, delta)
    if not accepted or enough is None:
        return "more groups would not show it while as many are wrong; give a larger --target-risk or --delta"
    more = f"about {enough:,} would do, from about {math.ceil(groups * enough / accepted):,} groups set aside"
    return f"if as large a share stays wrong, {more}; record these, or give a larger --target-risk or --delta"


def one_of_each(groups: NDArray[np.str_], seed: int = 0) -> NDArray[np.int64]:
    """One random row of each group."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    return np.sort(order[first])


def with_guarantee(
    probes: ProbeSet, fit: Table, promised: Table, *, target_risk: float, delta: float, caches: Caches = "whole"
) -> ProbeSet:
    """The probe set with the threshold that `promised`, which nothing was fitted on, supports.

    It is promised of answers under one kind of cache, since a mix of budgets promises nothing of any one of them.

    Raises:
        FitError: no threshold keeps the promise.
    """
    fit, promised = (t if caches == "any" else t.where(t.reduced == (caches == "reduced")) for t in (fit, promised))
    if not promised.answers or not fit.answers:
        kind = "" if caches == "any" else f" under a {caches} cache"
        raise FitError(f"no answers{kind} are left for the guarantee; record more groups, or give another --promise-for")
    guarantee = choose_threshold(
        published_confidence(probes, promised),
        promised.correct,
        promised.groups,
        published_confidence(probes, fit),
        target_risk=target_risk,
        delta=delta,
    )
    guarantee = replace(guarantee, caches=caches)
    facts = {**guarantee.as_dict(), "conditions": sorted(set(promised.conditions.tolist())), "void": "where answers come from elsewhere"}
    return replace(probes, manifest={**probes.manifest, "guarantee": facts}, guarantee=guarantee)
