"""Time and memory of the engine on a CPU, statistics on and off, beside transformers; arms take turns within one run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from introspect.engine import Engine
from introspect.provenance import provenance
from introspect.types import Budget
from introspect_probes.cpu_arms import (
    Times,
    build_100m,
    inputs_of,
    load_100m,
    load_pair,
    prompts_of,
    run_eager_after_sdpa,
    run_engine,
    run_transformers,
)
from introspect_probes.errors import ProbesError
from introspect_probes.unfinished import Unfinished

LENGTHS = (256, 2048, 8192)
RATIOS = (1.0, 0.5, 0.25, 0.12, 0.06)
POLICY = "coverage"
MEMORY_ARMS = ("statistics on", "statistics off", "generate sdpa", "generate eager with attentions")
WHOLE_MAPS = 4096
"""Prompts beyond this many tokens are read with SDPA before eager decoding: their maps would take tens of gigabytes."""

Arms = dict[str, Callable[[], Times]]


def cpu_study(*, rounds: int = 5, lengths: tuple[int, ...] = LENGTHS, keep: Path | None = None) -> dict[str, Any]:
    """All measurements, one after another.

    Args:
        rounds: how often arms take turns: twice as often on the embedded model, half as often where a round takes long, and
            once where it takes minutes.
        lengths: prompt lengths of the comparison with eager attention; the last is also that of the sweep over budgets.
        keep: a file for what is measured already, so that an interrupted run goes on.

    Returns:
        A benchmark row. Each entry of `rows` has `model`, `prompt`, `batch`, and per arm `whole_seconds` (prompt to last token) and
        `step_milliseconds` (one token of the whole batch), medians over rounds; ratios are medians of the rounds' own.
    """
    few, cases = max(1, rounds // 2), {"rounds": rounds, "lengths": list(lengths), "policy": POLICY}
    so_far = Unfinished(keep, cases)
    comparisons = [
        ("embedded", 208, 48, 2 * rounds, (1, 8)),
        ("random-100m", 2048, 24, rounds, (1,)),
        ("random-100m", 256, 24, few, (1, 8)),
    ]
    rows = [
        so_far.part(f"{model} {prompt} x {batch}", lambda: _on_off(model, prompt, new, turns, batch))  # noqa: B023 - called at once
        for model, prompt, new, turns, batches in comparisons
        for batch in batches
    ]
    rows += [
        so_far.part(f"eager {length}", lambda: _against_eager(length, 12, 1 if length > WHOLE_MAPS else few))  # noqa: B023
        for length in lengths
    ]
    return {
        "benchmark": "engine cpu",
        "provenance": provenance(),
        "cases": cases,
        "rows": rows,
        "budgets": [so_far.part(f"budget {ratio}", lambda: _budget(ratio, lengths[-1], 12)) for ratio in RATIOS],  # noqa: B023
        "memory": [row for arm in MEMORY_ARMS for row in so_far.part(f"memory {arm}", lambda: _memory(arm, lengths))],  # noqa: B023
        **_headline(rows),
    }


def _on_off(model: str, prompt: int, new: int, rounds: int, batch: int) -> dict[str, Any]:
    """Statistics on against off, and SDPA's `generate`."""
    loaded, plain = load_pair(model)
    engine = Engine(loaded)
    inputs = [inputs_of(plain, prompt, seed) for seed in range(batch)]
    on, off = (prompts_of(loaded, inputs, new, signals=signals) for signals in (True, False))
    arms: Arms = {
        "statistics on": lambda: run_engine(engine, on),
        "statistics off": lambda: run_engine(engine, off),
        "generate sdpa": lambda: run_transformers(plain, inputs, new),
    }
    times = _take_turns(arms, rounds)
    return {
        "model": model, "prompt": prompt, "batch": batch, "new": new, **_medians(times),
        "overhead_on_over_off": _ratio(times, "statistics on", "statistics off"),
        "overhead_on_over_off_step": _ratio(times, "statistics on", "statistics off", step=True),
        "ratio_on_over_generate": _ratio(times, "statistics on", "generate sdpa"),
        "ratio_on_over_generate_step": _ratio(times, "statistics on", "generate sdpa", step=True),
        "ratio_off_over_generate": _ratio(times, "statistics off", "generate sdpa"),
        "ratio_off_over_generate_step": _ratio(times, "statistics off", "generate sdpa", step=True),
    }  # fmt: skip


def _against_eager(prompt: int, new: int, rounds: int) -> dict[str, Any]:
    """Statistics on against eager attention that gives its maps."""
    loaded, plain = load_pair("random-100m", "eager")
    engine, is_long = Engine(loaded), prompt > WHOLE_MAPS
    inputs = inputs_of(plain, prompt, 0, picture=not is_long)
    ours = prompts_of(loaded, [inputs], new, signals=True)
    eager = (
        (lambda: run_eager_after_sdpa(plain, inputs, new)) if is_long else (lambda: run_transformers(plain, [inputs], new, attentions=True))
    )
    times = _take_turns({"statistics on": lambda: run_engine(engine, ours), "generate eager with attentions": eager}, rounds)
    return {
        "model": "random-100m", "prompt": prompt, "batch": 1, "new": new, "prompt_read_by": "sdpa" if is_long else "eager",
        **_medians(times),
        "ratio_eager_over_on": _ratio(times, "generate eager with attentions", "statistics on"),
        "ratio_eager_over_on_step": _ratio(times, "generate eager with attentions", "statistics on", step=True),
    }  # fmt: skip


def _budget(ratio: float, prompt: int, new: int) -> dict[str, Any]:
    """Decode time and KV bytes at one budget."""
    loaded = load_100m()
    engine, inputs = Engine(loaded), [inputs_of(loaded.model, prompt, 0)]
    prompts = prompts_of(loaded, inputs, new, signals=True, budget=Budget() if ratio == 1 else Budget(POLICY, ratio=ratio))
    seen: list[int] = []
    times = run_engine(engine, prompts, lambda: seen.append(engine.kv_bytes.owned))
    return {"ratio": ratio, "prompt": prompt, "step_milliseconds": _milliseconds(times.step), "kv_bytes": max(seen)}


def _take_turns(arms: Arms, rounds: int) -> dict[str, list[Times]]:
    """One unmeasured turn each where turns are short, then rounds in alternating order."""
    if rounds > 1:
        for run in arms.values():
            run()
    times: dict[str, list[Times]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            times[name].append(arms[name]())
    return times


def _medians(times: dict[str, list[Times]]) -> dict[str, dict[str, float]]:
    return {
        "whole_seconds": {name: round(float(np.median([t.whole for t in some])), 4) for name, some in times.items()},
        "step_milliseconds": {name: _milliseconds(float(np.median([t.step for t in some]))) for name, some in times.items()},
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ratio(times: dict[str, list[Times]], over: str, under: str, *, step: bool = False) -> float:
    pairs = zip(times[over], times[under], strict=True)
    return round(float(np.median([(a.step / b.step) if step else (a.whole / b.whole) for a, b in pairs])), 4)


def _headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The two ratios that the project aims at."""
    found = {
        (row["model"], row["prompt"]): row["overhead_on_over_off"] for row in rows if row["batch"] == 1 and "overhead_on_over_off" in row
    }
    return {f"overhead_{model.replace('-', '_')}_{prompt}": value for (model, prompt), value in found.items()}


def _memory(arm: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Peak resident memory of one answer at each length beyond that of the loaded model, in a process of its own."""
    done = subprocess.run(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-m", "introspect_probes.cpu_memory", arm, *map(str, sorted(lengths))], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ProbesError(f"measuring the memory of {arm!r} failed: {done.stderr.strip()[-500:]}")
    return [{"arm": arm, **json.loads(line)} for line in done.stdout.strip().splitlines()[-len(lengths) :]]


def load_arm(arm: str) -> Callable[[int, int], Callable[[], Times]]:
    """One arm with only its own model in memory: from a prompt's length and the number of new tokens, what runs it once."""
    if arm.startswith("statistics"):
        loaded = load_100m()
        engine = Engine(loaded)

        def ours(prompt: int, new: int) -> Callable[[], Times]:
            inputs = inputs_of(loaded.model, prompt, 0, picture=prompt <= WHOLE_MAPS)
            prompts = prompts_of(loaded, [inputs], new, signals=arm == "statistics on")
            return lambda: run_engine(engine, prompts)

        return ours
    plain = build_100m("sdpa" if arm == "generate sdpa" else "eager")

    def theirs(prompt: int, new: int) -> Callable[[], Times]:
        inputs = inputs_of(plain, prompt, 0, picture=prompt <= WHOLE_MAPS)
        if arm == "generate sdpa":
            return lambda: run_transformers(plain, [inputs], new)
        if prompt > WHOLE_MAPS:
            return lambda: run_eager_after_sdpa(plain, inputs, new)
        return lambda: run_transformers(plain, [inputs], new, attentions=True)

    return theirs
