"""`introspect bench engine`: what budgets cost in answers, what visual heads cause, what measuring costs in time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from introspect_service.commands import fail


def register(bench: typer.Typer) -> None:
    """Add the benchmark to its group."""
    bench.command("engine")(engine)


def engine(
    *,
    study: Annotated[str, typer.Option(help="accuracy, why, heads, cpu, or all.")] = "all",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder that rows and pictures go to.", file_okay=False, show_default="in a checkout, the engine's results"),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(help="Scenes or cases (accuracy, why, heads), or repetitions (cpu).", min=2, show_default="what the study needs"),
    ] = None,
    model: Annotated[str, typer.Option(help="A folder or hub id; it must know the world of digits.")] = "embedded",
    heads: Annotated[
        Path | None, typer.Option(help="Visual-head scores.", exists=True, dir_okay=False, show_default="those beside the model")
    ] = None,
) -> None:
    """Accuracy by policy and budget, why coverage holds, visual heads silenced, time and memory on a CPU; prints a row a study."""
    from introspect_probes.engine_study import STUDIES, run_study, table_of
    from introspect_service.bench import finish

    wanted = [s for s in STUDIES if study in (s, "all")]
    if not wanted:
        fail(f"--study must be one of {', '.join(STUDIES)} or all, got {study!r}")
    folder = out or results_folder()
    for one in wanted:
        row = run_study(one, folder, model=model, heads=heads, n=n)
        typer.echo(table_of(row))
        finish(row, None, "introspect", quick=True)


def results_folder() -> Path:
    """The results folder of this checkout; a run outside of one must name its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        fail("this is no checkout with a results folder: give --out")
    return root / "introspect" / "benchmarks" / "results"
