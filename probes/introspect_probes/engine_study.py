"""The studies behind `introspect bench engine`: each writes one JSON row and draws its picture beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from introspect.engine import Engine
from introspect.heads.visual_heads import read_visual_heads
from introspect.loading import EMBEDDED, load_model
from introspect_probes.budget_accuracy import budget_accuracy
from introspect_probes.engine_figures import draw_ablation, draw_accuracy
from introspect_probes.errors import ProbesError
from introspect_probes.head_ablation import head_ablation

Study = Literal["accuracy", "heads"]
STUDIES: tuple[Study, ...] = get_args(Study)
FILES: dict[Study, str] = {"accuracy": "accuracy-by-budget", "heads": "visual-head-ablation"}


def run_study(study: Study, out: Path, *, model: str = EMBEDDED, heads: Path | None = None, n: int | None = None) -> dict[str, Any]:
    """Run one study on a model that knows the world of digits, and write `<name>.json` and `<name>.png` into a folder.

    Args:
        study: `accuracy` (answers under every policy and budget) or `heads` (silencing visual heads).
        out: the folder, made where it is missing.
        model: a folder or hub id.
        heads: visual-head scores, by default those beside the model.
        n: scenes, or cases of each sort.

    Returns:
        The benchmark row.

    Raises:
        ProbesError: the model has no visual-head scores.
        IntrospectError: the model or the scores cannot be used.
    """
    loaded = load_model(model, heads=heads)
    if loaded.heads_path is None:
        raise ProbesError(
            f"the model {model!r} has no visual-head scores; make them with `introspect score-heads --model {model} --out ...`"
        )
    engine = Engine(loaded)
    if study == "accuracy":
        result = budget_accuracy(engine, scenes=n or 120)
    else:
        result = head_ablation(engine, read_visual_heads(loaded.heads_path, loaded), n=n or 200)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{FILES[study]}.json").write_text(_a_row_a_line(result), encoding="utf-8")
    (draw_accuracy if study == "accuracy" else draw_ablation)(result, out / f"{FILES[study]}.png")
    return result


def _a_row_a_line(result: dict[str, Any]) -> str:
    """JSON with each of `rows` on one line, so that two runs can be compared by eye."""
    marker = "@rows@"
    text = json.dumps({**result, "rows": marker}, indent=1)
    return text.replace(f'"{marker}"', "[\n  " + ",\n  ".join(json.dumps(row) for row in result["rows"]) + "\n ]") + "\n"
