"""`introspect bench kernels`: decode attention with and without statistics, beside what else computes it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from introspect.provenance import provenance
from introspect_kernels.bench import cpu
from introspect_kernels.bench.rows import cpu_row, gpu_row

SECONDS, QUICK_SECONDS = 1.0, 0.2
WIDTH = 130  # characters, so that no figure is cut off where the output goes to a file
COLUMNS = ("on", "off", "sdpa_folded", "sdpa_gqa", "eager", "eager_statistics")


def run(device: str, *, quick: bool, static: bool) -> dict[str, Any]:
    """Measure, print a table, return the row.

    Raises:
        KernelError: there is no such device, or results are wrong.
    """
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)

    def say(case: dict[str, Any]) -> None:
        console.print(f"  {case['model']} {case['dtype']} batch {case['batch']}, {case['entries']} entries: done", style="dim")

    if device == "cpu":
        row = cpu_row(
            cpu.problems(quick=quick), seconds=QUICK_SECONDS if quick else SECONDS, static=static, compiles=not quick, progress=say
        )
        console.print(_cpu_table(row))
        for target in row["targets"]:
            verdict = "met" if target["met"] else "missed"
            where = f"{target['model']} {target['dtype']} batch {target['batch']}"
            console.print(f"{target['ratio']} <= {target['limit']}: {target['value']} at {target['entries']} entries, {where}: {verdict}")
    else:
        row = gpu_row(quick=quick, progress=say)
        console.print(_gpu_table(row))
    return {"benchmark": row["benchmark"], "provenance": provenance(), **row}


def _cpu_table(row: dict[str, Any]) -> Table:
    table = Table(title="milliseconds a call: ours with statistics on and off, and others", caption=row["method"])
    for name in ("model", "dtype", "batch", "entries", *COLUMNS, "on/off", "off/sdpa"):
        table.add_column(name.replace("_", " "), justify="left" if name in ("model", "dtype") else "right")
    for case in row["cases"]:
        times = (f"{case['milliseconds'][name]:.3f}" if name in case["milliseconds"] else "" for name in COLUMNS)
        ratios = (f"{case[name]:.2f}" for name in ("overhead_on_over_off", "overhead_off_over_sdpa"))
        table.add_row(case["model"], case["dtype"], str(case["batch"]), str(case["entries"]), *times, *ratios)
    return table


def _gpu_table(row: dict[str, Any]) -> Table:
    table = Table(title="microseconds a call, and the bandwidth reached with statistics", caption=row["method"])
    names = sorted({name for case in row["cases"] for name in case["microseconds"]})
    for name in ("model", "MB", *names, "TB/s", "of a copy"):
        table.add_column(name.replace("_", " "), justify="left" if name == "model" else "right")
    for case in row["cases"]:
        times = (f"{case['microseconds'][name]:.1f}" if name in case["microseconds"] else "" for name in names)
        size, rate = f"{case['kv_bytes'] / 1e6:.0f}", f"{case['terabytes_per_second']:.2f}"
        table.add_row(case["model"], size, *times, rate, f"{case['share_of_copy_bandwidth']:.0%}")
    return table
