"""Head-score curves of training runs as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from introspect_probes.studies.tables import markdown_table

ERRORS = 3.0
"""A head looks if it hits this many standard errors more often than the best head of the run's untrained weights."""
_HEAD = (
    "run", "model", "parameters", "right at the end", "best head: untrained, at the end", "its jump, steps", "best head over the jump",
    "right over the jump", "rank correlation with the last scores: untrained, before the jump, after it",
    "heads that look: before the jump, at the end", "of them by layer",
)  # fmt: skip


def head_curves_table(results: Sequence[dict[str, Any]]) -> str:
    """One row a run: what the last checkpoint does, and where on the way its heads began to look."""
    if not results:
        return "No results are filed."
    return "\n\n".join([markdown_table(list(_HEAD), [_row(r) for r in results]), _level_text(results)])


def looking_level(result: dict[str, Any]) -> float | None:
    """The hit rate from which on a head counts as looking: `ERRORS` standard errors of a difference above the best untrained head."""
    untrained = result["heads"][0]
    if untrained is None:
        return None
    null, n = untrained["hit_rate"], result["request"]["heads"]
    return float(null + ERRORS * np.sqrt(2 * null * (1 - null) / n))


def jump_of(result: dict[str, Any]) -> int | None:
    """The number of the checkpoint behind which the best head's hit rate rises most; `None` where no head looks at the end."""
    curve, level = result["heads"], looking_level(result)
    if level is None or curve[-1] is None or curve[-1]["hit_rate"] < level:
        return None
    rises = [(b["hit_rate"] - a["hit_rate"], i) for i, (a, b) in enumerate(pairwise(curve)) if a is not None and b is not None]
    return max(rises)[1] if rises else None


def looking_heads(result: dict[str, Any], number: int) -> list[int] | None:
    """How many heads of each layer look at a checkpoint."""
    level, entry = looking_level(result), result["heads"][number]
    if level is None or entry is None:
        return None
    return [int(n) for n in (np.array(entry["hit_rates"]) >= level).sum(axis=1)]


def _row(result: dict[str, Any]) -> list[str]:
    model, curve, jump = result["model"], result["heads"], jump_of(result)
    shape = f"{model['family']}, {model['layers']} layers of {model['heads']} heads, {model['kv_heads']} KV heads"
    first, last = curve[0], curve[-1]
    cells = [result["run"], shape, f"{model['parameters'] / 1e6:.2f} M", _share(last, "right")]
    cells.append(f"{_share(first, 'hit_rate')}, {_share(last, 'hit_rate')}")
    if jump is None:
        return [*cells, "none", "-", "-", _number(first), _counts(result, None, len(curve) - 1), _layers(result)]
    before, after = curve[jump], curve[jump + 1]
    cells.append(f"{result['steps'][jump]} to {result['steps'][jump + 1]}")
    cells += [f"{_share(before, name)} to {_share(after, name)}" for name in ("hit_rate", "right")]
    cells.append(", ".join(_number(entry) for entry in (first, before, after)))
    return [*cells, _counts(result, jump, len(curve) - 1), _layers(result)]


def _share(entry: dict[str, Any] | None, name: str) -> str:
    return "-" if entry is None else f"{entry[name]:.0%}"


def _number(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None or entry.get("with_final") is None else f"{entry['with_final']:+.2f}"


def _counts(result: dict[str, Any], before: int | None, end: int) -> str:
    """Looking heads before the jump and at the end, of how many."""
    found = [None if number is None else looking_heads(result, number) for number in (before, end)]
    heads = result["model"]["layers"] * result["model"]["heads"]
    return ", ".join("-" if counts is None else str(sum(counts)) for counts in found) + f" of {heads}"


def _layers(result: dict[str, Any]) -> str:
    """Looking heads of each layer at the end, the first layer first."""
    counts = looking_heads(result, len(result["heads"]) - 1)
    return "-" if counts is None else " ".join(str(count) for count in counts)


def _level_text(results: Sequence[dict[str, Any]]) -> str:
    levels = [level for level in map(looking_level, results) if level is not None]
    numbers = {r["request"]["heads"] for r in results}
    return (
        f"A head looks where its hit rate is {ERRORS:g} standard errors of a difference above that of the best head of the run's own "
        f"untrained weights ({min(levels):.0%} to {max(levels):.0%}, by run); each checkpoint is asked "
        f"{', '.join(f'{n:,}' for n in sorted(numbers))} questions. By chance one in nine cells is hit."
        if levels
        else "No run has untrained weights that hit anything, so no level is told."
    )
