"""Decode attention on a GPU: bandwidth against a copy's, statistics on against off, rivals. Never run so far (README.md)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from introspect_kernels.bench.gate import check
from introspect_kernels.bench.gpu_rivals import Call, installed, ready, told
from introspect_kernels.bench.problems import LLAVA_7B, QWEN_7B, QWEN_72B, Inputs, Problem, make
from introspect_kernels.decode.api import decode_attention
from introspect_kernels.errors import KernelError

CACHE = 256 << 20  # bytes read between two uses of the same entries: several times what a second-level cache holds
COPY = 1 << 31  # bytes of the buffer whose copy gives the bandwidth to compare with
ROUNDS = 20
OVERHEADS = {"overhead_on_over_off": "off", "overhead_on_over_sdpa": "sdpa_folded", "overhead_on_over_flex": "flex_attention"}


def problems(*, quick: bool = False) -> list[Problem]:
    """17 MB, 134 MB, 0.5 GB and 2 GB of keys and values a call, for each of three models."""
    sizes = {
        QWEN_7B: ((1, 8192), (8, 8192), (32, 8192), (32, 32768)),
        QWEN_72B: ((1, 4096), (8, 4096), (32, 4096), (32, 16384)),
        LLAVA_7B: ((1, 1024), (8, 1024), (8, 4096), (32, 4096)),
    }
    every = [Problem(shape, batch, entries, "bf16") for shape, each in sizes.items() for batch, entries in each]
    return every[:2] if quick else every


def require_cuda() -> None:
    """Raise where there is no CUDA device.

    Raises:
        KernelError: torch sees none.
    """
    if not torch.cuda.is_available():
        raise KernelError("the GPU benchmark needs a CUDA device, and torch sees none here; --device cpu runs the CPU cases")


def copy_bandwidth() -> float:
    """Bytes a second that a copy within the device's memory moves, reads and writes counted."""
    source = torch.empty(COPY, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY / statistics.median(_graph_times([lambda: target.copy_(source)]))


def measure(chosen: list[Problem], bandwidth: float) -> Iterator[dict[str, Any]]:
    """Gate, then time, one problem after another; every call is timed inside a CUDA graph.

    Args:
        chosen: the problems.
        bandwidth: what `copy_bandwidth` gave, in this run.

    Yields:
        A case: the problem, microseconds of one call by name, terabytes a second and its share of the copy's; by name what
        kept others from being timed.

    Raises:
        GateError: results are wrong; nothing is timed from there on.
    """
    for problem in chosen:
        copies = [make(problem, "cuda", seed) for seed in range(max(1, -(-CACHE // problem.kv_bytes)))]
        excess = check(copies[0])
        graphs, failed = _graphs(copies)
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(ROUNDS):
            for name, graph in graphs.items():
                times[name].append(_replayed(graph) / len(copies))
        rate = problem.kv_bytes / statistics.median(times["on"])
        yield {
            "model": problem.shape.model,
            "batch": problem.batch,
            "entries": problem.entries,
            "dtype": problem.dtype,
            "kv_bytes": problem.kv_bytes,
            "error_over_budget": round(max(excess.values()), 3),
            "microseconds": {name: round(1e6 * statistics.median(each), 2) for name, each in times.items()},
            "terabytes_per_second": round(rate / 1e12, 3),
            "share_of_copy_bandwidth": round(rate / bandwidth, 3),
            "failed": failed,
            **{
                name: round(statistics.median(a / b for a, b in zip(times["on"], times[under], strict=True)), 3)
                for name, under in OVERHEADS.items()
                if under in times
            },
        }


def _graphs(copies: list[Inputs]) -> tuple[dict[str, torch.cuda.CUDAGraph], dict[str, str]]:
    """A graph of every arm, ours first, which must succeed; and what became of rivals that did not."""
    torch.compiler.reset()  # so that no shape is one too many for a compiled rival
    ours: dict[str, list[Call]] = {
        name: [partial(_ours, inputs, stats=name == "on") for inputs in copies] for name in ("on", "off")
    }  # fmt: skip
    graphs = {name: _captured(calls) for name, calls in ours.items()}
    with torch.inference_mode():
        calls, failed = ready(installed(), copies, ours["on"][0]())
    for name, each in calls.items():
        try:
            graphs[name] = _captured(each)
        except Exception as reason:  # noqa: BLE001 (whatever another's code raises is told in the row)
            failed[name] = told(reason)
    return graphs, failed


def _ours(inputs: Inputs, *, stats: bool) -> torch.Tensor:
    return decode_attention(inputs.q, inputs.arena, inputs.position, inputs.scale, stats=stats)[0]


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """One graph of all calls; each was called before, so that nothing is compiled while the graph is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for call in (*calls, *calls):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        for call in calls:
            call()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _graph_times(calls: list[Callable[[], object]]) -> list[float]:
    graph = _captured(calls)
    _replayed(graph)
    return [_replayed(graph) for _ in range(ROUNDS)]
