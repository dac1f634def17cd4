"""Do probabilities mean what they say over the answers of several arms together?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.provenance import provenance
from introspect_probes.dataset import load_table
from introspect_probes.metrics import probability_metrics
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import published_confidence, published_risks
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.shifts import Shift
from introspect_probes.traces import read_traces

FILE = "pooled.json"
USUAL, ALL = "usual pictures", "all arms"


def pooled_calibration(out: Path, probes: ProbeSet, shifts: Sequence[Shift], work: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Confidence and risk over the arms with pictures like those of the fit, under any cache, and over all arms.

    Args:
        out: folder of the result file; one that was made for the same request is read instead.
        probes: the probe set.
        shifts: the arms.
        work: the folder with a folder of recorded traces for each of them.
        request: what the arms were recorded and judged with.

    Returns:
        The result: `confidence` and `risk` for `USUAL` and `ALL`, as `metrics.probability_metrics` gives them, where such arms are.
    """
    path, asked = out / FILE, {**request, "arms": [shift.name for shift in shifts]}
    if (found := filed(path, asked)) is not None:
        return found
    parts = {shift.name: _judged(probes, work / shift.name) for shift in shifts}
    sets = {USUAL: [s.name for s in shifts if s.style is None and s.noise is None], ALL: [s.name for s in shifts]}
    result: dict[str, Any] = {
        "benchmark": "study free-running, pooled",
        **{name: _metrics([parts[arm] for arm in arms]) for name, arms in sets.items() if arms},
        "request": asked,
        "provenance": provenance(),
    }
    file_result(path, result)
    return result


Judged = tuple[NDArray[Any], NDArray[Any], NDArray[np.str_]]


def _judged(probes: ProbeSet, folder: Path) -> dict[str, Judged]:
    """Probabilities, labels and groups of an arm's answers and claims."""
    table = load_table(trace for trace in read_traces(folder) if trace.steps)
    return {
        "confidence": (published_confidence(probes, table), table.correct, table.groups),
        "risk": (published_risks(probes, table.claims), table.claims.label, table.claims.group),
    }


def _metrics(parts: Sequence[dict[str, Judged]]) -> dict[str, Any]:
    found = {}
    for signal in ("confidence", "risk"):
        probabilities, labels, groups = (np.concatenate(values) for values in zip(*(part[signal] for part in parts), strict=True))
        found[signal] = probability_metrics(probabilities, labels.astype(np.int64), groups)
    return found
