"""`introspect study`: the evidence, as runs of steps that resume. Each is a thin wrapper around a Python call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

study = typer.Typer(
    name="study", help="The evidence: long runs of steps that resume, each step with its result file.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(study)


@study.command("kernel-only")
def kernel_only(
    *,
    out: Annotated[Path, typer.Option(help="The folder of the result files, one a model and arm.", file_okay=False)],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model seed: a training run's folder, a model's folder or hub id; it must know the world of digits. May be given again.",
            show_default="embedded",
        ),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="An arm; may be given again.", show_default="all")] = None,
    test: Annotated[int, typer.Option(help="Test cases an arm.", min=20)] = 4000,
    fit: Annotated[int, typer.Option(help="Cases an arm that probes are fitted on.", min=20)] = 4000,
    seed: Annotated[int, typer.Option(help="Which cases.", min=0)] = 101,
    work: Annotated[Path, typer.Option(help="Where recorded rows are kept; large.", file_okay=False)] = Path("runs/studies/kernel-only"),
) -> None:
    """What head statistics add to logits and hidden states after eviction, and add nothing where nothing was evicted."""
    from introspect_probes.studies.arms import ARMS
    from introspect_probes.studies.kernel_only import kernel_only as run
    from introspect_probes.studies.tables import kernel_only_table

    results = run(out, models=model or ["embedded"], arms=arm or list(ARMS), test=test, fit=fit, seed=seed, work=work)
    typer.echo(kernel_only_table(results))


@study.command("free-running")
def free_running(
    *,
    out: Annotated[Path, typer.Option(help="The folder of the result files, one an arm.", file_okay=False)],
    traces: Annotated[list[Path], typer.Option(help="A folder that the probe set was fitted on; may be given again.", file_okay=False)],
    probes: Annotated[str, typer.Option(help="The folder of a probe set, or embedded.")] = "embedded",
    model: Annotated[str, typer.Option(help="A folder or hub id; it must know the world of digits.")] = "embedded",
    arm: Annotated[list[str] | None, typer.Option(help="An arm; may be given again.", show_default="all")] = None,
    n: Annotated[int, typer.Option(help="Cases an arm.", min=10)] = 400,
    seed: Annotated[int, typer.Option(help="Which cases.", min=0)] = 202,
    work: Annotated[Path, typer.Option(help="Where recorded traces are kept.", file_okay=False)] = Path("runs/studies/free-running"),
) -> None:
    """False claims in free-running answers, under budgets and in pictures that the probe set was not fitted on."""
    from introspect_probes.probe_set import load_probe_set
    from introspect_probes.studies.free_running import free_running as run
    from introspect_probes.studies.pooled_calibration import pooled_calibration
    from introspect_probes.studies.shifts import SHIFTS, get_shift
    from introspect_probes.studies.tables import free_running_table

    own, arms = load_probe_set(probes), arm or list(SHIFTS)
    results = run(out, own, traces, model=model, arms=arms, n=n, seed=seed, work=work)
    whole = set(arms) == set(SHIFTS)  # the result over all arms is of all of them
    pooled = pooled_calibration(out, own, [get_shift(name) for name in arms], work, results[0]["request"]) if whole else {}
    typer.echo(free_running_table(results, pooled))


@study.command("attack")
def attack(
    *,
    out: Annotated[Path, typer.Option(help="The folder of the result files, one a model and setting.", file_okay=False)],
    traces: Annotated[list[Path], typer.Option(help="A folder that the probe set was fitted on; may be given again.", file_okay=False)],
    probes: Annotated[str, typer.Option(help="The folder of a probe set of the embedded model, or embedded.")] = "embedded",
    setting: Annotated[list[str] | None, typer.Option(help="A setting; may be given again.", show_default="all")] = None,
    steps: Annotated[int, typer.Option(help="Updates of the fine-tuning that hides.", min=1)] = 300,
    weight: Annotated[float, typer.Option(help="Of hiding, beside right answers.", min=0)] = 1.0,
    n: Annotated[int, typer.Option(help="Test cases an arm.", min=10)] = 400,
    seed: Annotated[int, typer.Option(help="Which cases.", min=0)] = 303,
    work: Annotated[Path, typer.Option(help="Where the model and recorded traces are kept.", file_okay=False)] = Path(
        "runs/studies/attack"
    ),
) -> None:
    """The embedded model fine-tuned to hide its image attention: what frozen probes then say, and whether drift is told."""
    from introspect_probes.probe_set import load_probe_set
    from introspect_probes.studies.attack import SETTINGS, attack_table
    from introspect_probes.studies.attack import attack as run
    from introspect_probes.studies.hiding import Hiding

    plan, settings = Hiding(steps=steps, weight=weight), setting or list(SETTINGS)
    results = run(out, load_probe_set(probes), traces, plan=plan, n=n, settings=settings, seed=seed, work=work)
    typer.echo(attack_table(results))


@study.command("learning-state")
def learning_state(
    *,
    out: Annotated[Path, typer.Option(help="The folder of the result files, one a run.", file_okay=False)],
    runs: Annotated[
        list[Path], typer.Option(help="A finished training run of one plan; give three or more.", file_okay=False, exists=True)
    ],
    fit: Annotated[int, typer.Option(help="Items that probes are fitted on, a run and checkpoint.", min=20)] = 200,
    test: Annotated[int, typer.Option(help="Items that they are judged on, a checkpoint.", min=20)] = 600,
    heads: Annotated[int, typer.Option(help="Pictures by which heads are scored, a checkpoint.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Which items.", min=0)] = 404,
    work: Annotated[Path, typer.Option(help="Where recorded rows are kept.", file_okay=False)] = Path("runs/studies/learning-state"),
) -> None:
    """Which wrong items will be right at the end of training, told from head statistics at its checkpoints."""
    from introspect_probes.studies.learning_state import learning_state as run
    from introspect_probes.studies.learning_table import learning_state_table

    results = run(out, runs, fit=fit, test=test, heads=heads, seed=seed, work=work)
    typer.echo(learning_state_table(results))


@study.command("head-curves")
def head_curves(
    *,
    out: Annotated[Path, typer.Option(help="The folder of the result files, one a run.", file_okay=False)],
    runs: Annotated[list[Path], typer.Option(help="A finished training run; may be given again.", file_okay=False, exists=True)],
    heads: Annotated[int, typer.Option(help="Questions by which heads are scored, a checkpoint.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Which questions.", min=0)] = 404,
    work: Annotated[Path, typer.Option(help="Where scores of single checkpoints are kept.", file_okay=False)] = Path(
        "runs/studies/learning-state"
    ),
) -> None:
    """When heads begin to look in training, how many and where, in runs of whatever seed, size and family."""
    from introspect_probes.studies.curves_table import head_curves_table
    from introspect_probes.studies.head_curves import head_curves as run

    typer.echo(head_curves_table(run(out, runs, heads=heads, work=work, seed=seed)))
