"""`introspect bench`: benchmarks. Each writes one JSON row and prints it as its last line.

A benchmark's own modules are imported when it runs, and only then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from introspect_service import bench_engine
from introspect_service.commands import fail

bench = typer.Typer(no_args_is_help=True, add_completion=False)

OutOption = Annotated[
    Path | None, typer.Option("--out", help="The file that the JSON row goes to.", show_default="in a checkout, the part's results folder")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Few repetitions, small cases; nothing is written without --out.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Torch device.")]


def register(app: typer.Typer) -> None:
    """Add the benchmarks to the command line."""
    bench_engine.register(bench)
    app.add_typer(bench, name="bench")


@bench.callback()
def about() -> None:
    """Measure; the last line of output is one JSON row with its provenance."""


@bench.command()
def kernels(
    *,
    device: DeviceOption = "cpu",
    out: OutOption = None,
    quick: QuickOption = False,
    static: Annotated[bool, typer.Option(help="Also compile the Triton kernels for GPUs, and count; needs Triton and minutes.")] = False,
) -> None:
    """Attention with its statistics on and off, beside SDPA and eager attention; wrong results are not timed."""
    from introspect_service.bench_kernels import run

    if device != "cpu" and not device.startswith("cuda"):
        fail(f"--device must be cpu or cuda, got {device!r}")
    finish(run(device, quick=quick, static=static), out, "kernels", quick=quick)


@bench.command()
def service(
    *,
    requests: Annotated[int, typer.Option(help="Short answers over which memory is watched.", min=10)] = 10_000,
    seconds: Annotated[float, typer.Option(help="How long each load goes on.", min=0.1)] = 8.0,
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure only this: added, throughput, threads, latency, memory or faults; may be repeated. Written only with --out.",
            show_default="all",
        ),
    ] = None,
    out: OutOption = None,
    quick: QuickOption = False,
) -> None:
    """What signals and the stream cost an answer, latency under load, and the stream's server killed, paused and slow."""
    from introspect_service.bench_service import CASES, run

    if unknown := set(case or ()) - set(CASES):
        fail(f"--case: expected {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    requests, seconds = (min(requests, 20), min(seconds, 1.0)) if quick else (requests, seconds)
    row = run(requests=requests, seconds=seconds, quick=quick, only=case or CASES)
    finish(row, out, "service", quick=quick or case is not None)


def finish(row: dict[str, Any], out: Path | None, part: str, *, quick: bool) -> None:
    """Write a row to its file and print it, as one line, last.

    Args:
        row: `benchmark`, `provenance`, `cases` and ratios named `overhead...` (DESIGN.md).
        out: the file; without one, a dated file among the part's results, if this is a checkout and not a quick run.
        part: the folder of the repository whose results these are.
        quick: whether the row is too rough to be kept unasked.
    """
    path = out or (None if quick else _dated(row, part))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"written to {path}")
    typer.echo(json.dumps(row))


def _dated(row: dict[str, Any], part: str) -> Path | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return None
    stamp = str(row["provenance"]["date"])[:16].replace("-", "").replace(":", "")
    return root / part / "benchmarks" / "results" / f"{str(row['benchmark']).replace(' ', '-')}-{stamp}.json"
