"""The studies behind `introspect bench engine`: each writes one JSON row and draws its picture beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from introspect.engine import Engine
from introspect.heads.visual_heads import read_visual_heads
from introspect.loading import EMBEDDED, LoadedModel, load_model
from introspect_probes.budget_accuracy import budget_accuracy
from introspect_probes.coverage_study import coverage_study
from introspect_probes.cpu_study import cpu_study
from introspect_probes.engine_figures import draw_ablation, draw_accuracy, draw_coverage
from introspect_probes.errors import ProbesError
from introspect_probes.head_ablation import head_ablation

Study = Literal["accuracy", "why", "heads", "cpu"]
STUDIES: tuple[Study, ...] = get_args(Study)
FILES: dict[Study, str] = {"accuracy": "accuracy-by-budget", "why": "why-coverage-holds", "heads": "visual-head-ablation", "cpu": "cpu"}
_MEASURES = {"wrong": "false or left out", "false_rate": "false", "exact": "description exact", "exact_other": "other exact"}


def run_study(study: Study, out: Path, *, model: str = EMBEDDED, heads: Path | None = None, n: int | None = None) -> dict[str, Any]:
    """Run one study on a model that knows the world of digits, and write `<name>.json` and `<name>.png` into a folder.

    An interrupted run goes on where it was, if nothing has changed since: its parts are kept in `<name>.unfinished`.

    Args:
        study: `accuracy` (answers under every policy and budget), `why` (what the recommended policy owes its hold to)
            `heads` (silencing visual heads) or `cpu` (time and memory; on models of its own, no picture).
        out: the folder, made where it is missing.
        model: a folder or hub id.
        heads: visual-head scores, by default those beside the model.
        n: scenes, or cases of each sort, or rounds.

    Returns:
        The benchmark row.

    Raises:
        ProbesError: the model has no visual-head scores.
        IntrospectError: the model or the scores cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    keep = out / f"{FILES[study]}.unfinished"
    if study == "cpu":
        result = cpu_study(rounds=n or 5, keep=keep)
        (out / f"{FILES[study]}.json").write_text(_a_row_a_line(result), encoding="utf-8")
        keep.unlink()
        return result
    loaded = load_model(model, heads=heads)
    if loaded.heads_path is None:
        raise ProbesError(
            f"the model {model!r} has no visual-head scores; make them with `introspect score-heads --model {model} --out ...`"
        )
    result = _run(study, Engine(loaded), loaded, n, keep)
    (out / f"{FILES[study]}.json").write_text(_a_row_a_line(result), encoding="utf-8")
    keep.unlink()
    {"accuracy": draw_accuracy, "why": draw_coverage, "heads": draw_ablation}[study](result, out / f"{FILES[study]}.png")
    return result


def _run(study: Study, engine: Engine, loaded: LoadedModel, n: int | None, keep: Path) -> dict[str, Any]:
    if study == "accuracy":
        return budget_accuracy(engine, scenes=n or 100, keep=keep)
    if study == "why":
        return coverage_study(engine, scenes=n or 100, keep=keep)
    if loaded.heads_path is None:
        raise ProbesError(f"the model {loaded.name!r} has no visual-head scores")
    return head_ablation(engine, read_visual_heads(loaded.heads_path, loaded), n=n or 150, keep=keep)


def table_of(result: dict[str, Any]) -> str:
    """The rows of a study in Markdown, values with their 95 % intervals."""
    if result["benchmark"] == "engine cpu":
        head = ["model", "prompt", "batch", "arm", "prompt to last token", "a token"]
        body = [
            [row["model"], str(row["prompt"]), str(row["batch"]), arm, f"{seconds:.3f} s", f"{row['step_milliseconds'][arm]:.2f} ms"]
            for row in result["rows"]
            for arm, seconds in row["whole_seconds"].items()
        ]
    elif "policy" in result["rows"][0]:
        head = ["policy", "ratio", "entries", *_MEASURES.values()]
        body = [
            [row["policy"], f"{row['ratio']:.0%}", f"{row['effective']:.1f}", *(_with_interval(row[key]) for key in _MEASURES)]
            for row in result["rows"]
        ]
    else:
        head = ["heads", "silenced", "picture questions", "learned facts"]
        body = [
            [row["heads"], str(row["silenced"]), _with_interval(row["picture"]), _with_interval(row["facts"])] for row in result["rows"]
        ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def _with_interval(triple: list[float]) -> str:
    return f"{triple[0]:.3f} [{triple[1]:.3f}, {triple[2]:.3f}]"


def _a_row_a_line(result: dict[str, Any]) -> str:
    """JSON with each of `rows` on one line, so that two runs can be compared by eye."""
    marker = "@rows@"
    text = json.dumps({**result, "rows": marker}, indent=1)
    return text.replace(f'"{marker}"', "[\n  " + ",\n  ".join(json.dumps(row) for row in result["rows"]) + "\n ]") + "\n"
