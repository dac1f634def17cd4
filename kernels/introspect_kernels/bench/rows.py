"""The benchmark as one JSON row: what `introspect bench kernels` writes, provenance aside."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from introspect_kernels.bench import cpu, gpu
from introspect_kernels.bench.first_call import first_calls
from introspect_kernels.bench.gate import Attention
from introspect_kernels.bench.gpu_rivals import not_installed
from introspect_kernels.bench.problems import Problem
from introspect_kernels.decode.api import decode_attention

Progress = Callable[[dict[str, Any]], object]


def cpu_row(
    chosen: list[Problem],
    *,
    seconds: float,
    static: bool,
    compiles: bool = False,
    attend: Attention = decode_attention,
    progress: Progress = lambda case: None,  # noqa: ARG005 - a default that ignores what it is told
) -> dict[str, Any]:
    """Measure on this machine's CPU.

    Args:
        chosen: the problems, such as `cpu.problems()`.
        seconds: to spend on each.
        static: whether to compile the Triton kernels for GPUs and add what that counts, where Triton is installed.
        compiles: whether to add what the first call of each dtype takes, which compiles.
        attend: what is measured; something else than `decode_attention` shows that the gate works.
        progress: told each case as it is done.

    Raises:
        GateError: results are wrong.
    """
    cases = []
    for case in cpu.measure(chosen, seconds=seconds, attend=attend):
        progress(case)
        cases.append(case)
    met = cpu.targets(cases)
    row: dict[str, Any] = {
        "benchmark": "kernels cpu",
        "method": f"random order in every round, {torch.get_num_threads()} threads, {seconds:g} s a case; medians of times and of ratios",
        "cases": cases,
        "targets": met,
    }
    if compiles:
        row["first_call_seconds"] = first_calls()
    if static and importlib.util.find_spec("triton") is not None:
        from introspect_kernels.bench.static import static_counts

        row["static"] = static_counts()
    return row


def gpu_row(*, quick: bool, progress: Progress) -> dict[str, Any]:
    """Measure on the current CUDA device.

    Raises:
        KernelError: there is none, or results are wrong.
    """
    gpu.require_cuda()
    bandwidth = gpu.copy_bandwidth()
    cases = []
    for case in gpu.measure(gpu.problems(quick=quick), bandwidth):
        progress(case)
        cases.append(case)
    return {
        "benchmark": "kernels gpu",
        "method": f"CUDA graphs over copies of the cache of at least {gpu.CACHE >> 20} MiB together, in turn; medians of {gpu.ROUNDS}",
        "copy_terabytes_per_second": round(bandwidth / 1e12, 3),
        "not_compared": not_installed(),
        "cases": cases,
    }
