"""The offline commands: record, train, evaluate. Each is a thin wrapper around a Python call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from introspect_service.commands import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from introspect.types import Budget
    from introspect_probes.worlds.cases import Case

FULL = "full"
OUTSIDE = "outside"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (record, train, evaluate):
        app.command()(command)


def record(
    *,
    out: Annotated[Path, typer.Option(help="Folder of traces, made or appended to.")],
    cases: Annotated[Path | None, typer.Option(help="A cases.jsonl of your own.", exists=True, dir_okay=False)] = None,
    world: Annotated[str | None, typer.Option(help="A world's cases: digits, or outside for prompts no answer is right to.")] = None,
    n: Annotated[int, typer.Option(help="How many cases of a world.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Which cases of a world.", min=0)] = 0,
    pool: Annotated[str, typer.Option(help="Whose handwriting: model, probe, calibration or test.")] = "probe",
    weight: Annotated[
        list[str] | None, typer.Option(help="A kind of question and its weight, such as describe=3; may be given again.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="full, or policy:amount such as snapkv:25% or random:64; may be given again.", show_default=FULL),
    ] = None,
    interventions: Annotated[
        bool, typer.Option("--interventions", help="Also measure what moves each claim, for strategy states.")
    ] = False,
    match: Annotated[
        str,
        typer.Option(help="When an answer is right: normalised (but for case and spacing), exact, contains or numeric (the last number)."),
    ] = "normalised",
    model: Annotated[str, typer.Option(help="A folder or hub id.")] = "embedded",
    heads: Annotated[Path | None, typer.Option(help="Visual-head scores, for sparsemm.", exists=True, dir_okay=False)] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Answers decoded together.", min=1)] = 32,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 96,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also keep hidden states (fp16), for the baseline L+H; large.")] = False,
    samples: Annotated[int, typer.Option(help="Also draw this many answers for each, for the baseline self-consistency.", min=0)] = 0,
    influence: Annotated[bool, typer.Option("--influence", help="Also keep what tokens receive from later ones, for FAI.")] = False,
) -> None:
    """Answer labelled cases and store what every head did."""
    from introspect.engine import Engine
    from introspect.loading import load_model
    from introspect_probes.record import record as run

    if (cases is None) == (world is None):
        fail("give either --cases or --world")
    try:
        chosen = _cases(cases, world, n, seed, pool, weight)
        budgets = [parse_condition(text) for text in budget or [FULL]]
        engine = Engine(load_model(model, device=device, heads=heads), max_batch=batch_size)
        total = n if world is not None else None
        written = run(
            chosen, engine, out, budgets=budgets, interventions=interventions, matcher=match, batch_size=batch_size, max_tokens=max_tokens,
            hidden=hidden, samples=samples, influence=influence, total=total,
        )  # fmt: skip
    except ValueError as problem:
        fail(str(problem))
    typer.echo(f"{written} traces written to {out}")


def train(
    *,
    traces: Annotated[list[Path], typer.Option(help="A folder of traces; may be given again.")],
    out: Annotated[Path, typer.Option(help="Where to write the probe set.")],
    name: Annotated[str, typer.Option(help="The probe set's name and version.")] = "probes-1",
    target_risk: Annotated[
        float | None,
        typer.Option(help="Also choose the confidence over which at most this share of answers is wrong.", show_default="none"),
    ] = None,
    delta: Annotated[float, typer.Option(help="Chance that the choice for --target-risk is wrong.")] = 0.1,
    promise_for: Annotated[
        str, typer.Option(help="Under which caches answers are guaranteed: whole, reduced, or any, in the mix that was recorded.")
    ] = "whole",
    sparse: Annotated[bool, typer.Option("--sparse/--no-sparse", help="Also write checkpoints that read 1, 2, 4 and 8 heads.")] = True,
) -> None:
    """Fit, calibrate and save a probe set: confidence, and what else the labels support."""
    from introspect_probes.train import train as run

    probes = run(traces, out, name=name, target_risk=target_risk, delta=delta, promise_for=promise_for, sparse=sparse)
    typer.echo(f"probe set {probes.name} written to {out}")
    for signal, reason in probes.manifest["absent"].items():
        typer.echo(f"absent: {signal}: {reason}")
    if probes.guarantee is not None:
        own = probes.guarantee
        typer.echo(
            f"at most {own.target_risk:.1%} wrong from a confidence of {own.threshold:g} on (delta {own.delta:g}, {own.caches} caches)"
        )


def evaluate(
    *,
    probes: Annotated[str, typer.Option(help="The folder of a probe set, or embedded.")],
    traces: Annotated[list[Path], typer.Option(help="A folder of traces; may be given again.")],
    out: Annotated[Path, typer.Option(help="Where to write report.json and report.html.")],
) -> None:
    """Compare a probe set with its baselines on the test part of traces: a JSON file and one HTML page."""
    from introspect_probes.evaluation import evaluate as run
    from introspect_probes.probe_set import load_probe_set
    from introspect_probes.report import summary

    report = run(load_probe_set(probes), traces, out)
    typer.echo(summary(report))
    typer.echo(f"\nThe page with plots and cases: {out / 'report.html'}")


def parse_condition(text: str) -> Budget:
    """A recording condition: `full`, or a policy and an amount joined by a colon.

    Raises:
        ValueError: it is neither.
    """
    from introspect_service.budgets import make_budget

    policy, _, amount = text.partition(":")
    return make_budget(amount or None, policy)


def _cases(cases: Path | None, world: str | None, n: int, seed: int, pool: str, weight: list[str] | None) -> Iterator[Case]:
    from introspect_probes.worlds.cases import read_cases
    from introspect_probes.worlds.digits import POOLS
    from introspect_probes.worlds.outside import outside_cases
    from introspect_probes.worlds.world import get_world

    if cases is not None:
        return read_cases(cases)
    known = next((p for p in POOLS if p == pool), None)
    if known is None:
        raise ValueError(f"--pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if world == OUTSIDE:
        return outside_cases(n, seed=seed, part="test" if known == "test" else "fit", pool=known)
    kinds = {name: float(value) for name, _, value in (w.partition("=") for w in weight or [])}
    return get_world(world or "").cases(n, seed=seed, pool=known, kinds=kinds or None)
