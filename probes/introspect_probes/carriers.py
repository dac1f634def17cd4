"""Which heads and which statistics carry a probe: its weights on standardised features."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from introspect_probes.features import head_feature_names
from introspect_probes.linear import LinearProbe
from introspect_probes.probe_set import ProbeSet

_NAME = re.compile(
    r"(?:(?P<row>producing|reading)\.)?(?P<before>[a-z_]*?)\.?L(?P<layer>\d+)(?:\.(?P<unit>[HK])(?P<head>\d+))?(?:\.(?P<after>\w+))?"
)
TOP = 15


def carriers(probes: ProbeSet) -> dict[str, Any]:
    """What carries the internal hallucination probe or, without one, confidence.

    Returns:
        `probe`: which of the two; and `weights`: `weights_of` it under `the whole cache` and under `reduced caches`, or under
        `any cache` where one probe is for both.
    """
    both = probes.claims.internal if probes.claims is not None else probes.confidence
    if both.whole is both.reduced:
        found = {"any cache": weights_of(both.whole, probes)}
    else:
        found = {"the whole cache": weights_of(both.whole, probes), "reduced caches": weights_of(both.reduced, probes)}
    return {"probe": "hallucination risk (internal)" if probes.claims is not None else "confidence", "weights": found}


def weights_of(probe: LinearProbe, probes: ProbeSet) -> dict[str, Any]:
    """Sums of a probe's absolute weights by head and by statistic.

    A weight is per standard deviation, in nats of log-odds. What is per KV head is shared among the query heads of its
    group, what is per layer among all of its heads.

    Returns:
        `heads` `[layers][heads]`, `statistics` (largest first), `top` features with their signed weights,
        `used` and `of`: features with a weight, and all.
    """
    names = head_feature_names(probes.shape)
    weights = probe.weight[0, : len(names)].astype(np.float64)
    layers, heads, kv_heads = probes.shape.layers, probes.shape.heads, probes.shape.kv_heads
    grid, statistics = np.zeros((layers, heads)), dict[str, float]()
    for name, weight in zip(names, np.abs(weights), strict=True):
        if weight == 0:
            continue
        layer, columns, statistic = place_of(name, heads, kv_heads)
        grid[layer, columns] += weight / len(columns)
        statistics[statistic] = statistics.get(statistic, 0.0) + float(weight)
    order = np.argsort(-np.abs(weights), kind="stable")[:TOP]
    return {
        "heads": np.round(grid, 4).tolist(),
        "statistics": {k: round(v, 4) for k, v in sorted(statistics.items(), key=lambda item: -item[1])},
        "top": [[names[i], round(float(weights[i]), 4)] for i in order if weights[i]],
        "used": int((weights != 0).sum()),
        "of": len(names),
    }


def place_of(name: str, heads: int, kv_heads: int) -> tuple[int, list[int], str]:
    """Layer, query heads and statistic of a head feature's name.

    Raises:
        ValueError: it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"expected a head feature such as producing.L2.H5.lse, got {name!r}")
    if match["unit"] == "H":
        columns = [int(match["head"])]
    elif match["unit"] == "K":
        group = heads // kv_heads
        columns = list(range(int(match["head"]) * group, (int(match["head"]) + 1) * group))
    else:
        columns = list(range(heads))
    return int(match["layer"]), columns, match["after"] or match["before"]
