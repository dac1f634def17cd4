"""Who fits, who calibrates, who tests: the split of traces, the same wherever they are read."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from introspect_probes.errors import FitError
from introspect_probes.traces import Entry, Trace, matcher_of, read_manifest

OUTSIDE_KIND = "outside"


def part_of(trace: Trace | Entry) -> str:
    """`fit`, `calibration` or `test`: the digit pool where there is one, else a stable hash of the group (one fifth is test)."""
    if trace.pool is not None:
        return {"probe": "fit", "calibration": "calibration"}.get(trace.pool, "test")
    bucket = int.from_bytes(sha256(trace.group.encode()).digest()[:4], "big") % 5
    return "test" if bucket == 0 else "calibration" if bucket == 1 else "fit"


def is_promised(trace: Trace) -> bool:
    """Whether a calibration trace is set aside for the guarantee: every second group, by a stable hash."""
    return sha256(f"guarantee/{trace.group}".encode()).digest()[0] % 2 == 0


def common_manifest(folders: Sequence[Path]) -> dict[str, Any]:
    """The manifest of trace folders that can be read together.

    Raises:
        FitError: they are of several models, or were judged by several matchers.
    """
    manifests = [read_manifest(folder) for folder in folders]
    for what, values in (("model", [m["fingerprint"] for m in manifests]), ("matcher", [matcher_of(m) for m in manifests])):
        if len(set(values)) != 1:
            other = next(i for i, value in enumerate(values) if value != values[0])
            raise FitError(f"{folders[0]} and {folders[other]} differ in their {what}; give traces of one {what}")
    return manifests[0]
