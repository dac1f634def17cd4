"""Time and memory of the engine on a CPU, statistics on and off, beside transformers; arms take turns within one run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
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

LENGTHS = (256, 2048, 8192)
RATIOS = (1.0, 0.5, 0.25, 0.12, 0.06)
POLICY = "coverage"
MEMORY_ARMS = ("statistics on", "statistics off", "generate sdpa", "generate eager with attentions")
WHOLE_MAPS = 4096
"""Prompts beyond this many tokens are read with SDPA before eager decoding: their maps would take tens of gigabytes."""

Arms = dict[str, Callable[[], Times]]


def cpu_study(*, rounds: int = 5, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """All measurements, one after another.

    Args:
        rounds: how often arms take turns: twice as often on the embedded model, half as often where a round takes long, and
            once where it takes minutes.
        lengths: prompt lengths of the comparison with eager attention; the last is also that of the sweep over budgets.

    Returns:
        A benchmark row. Each entry of `rows` has `model`, `prompt`, `batch`, and per arm `whole_seconds` (prompt to last token) and
        `step_milliseconds` (one token of the whole batch), medians over rounds; ratios are medians of the rounds' own.
    """
    few = max(1, rounds // 2)
    rows = [*_on_off("embedded", 208, 48, 2 * rounds), *_on_off("random-100m", 2048, 24, rounds, batches=(1,))]
    rows += _on_off("random-100m", 256, 24, few)
    rows += [_against_eager(length, 12, 1 if length > WHOLE_MAPS else few) for length in lengths]
    return {
        "benchmark": "engine cpu",
        "provenance": provenance(),
        "cases": {"rounds": rounds, "lengths": list(lengths), "policy": POLICY},
        "rows": rows,
        "budgets": _budgets(lengths[-1], 12),
        "memory": [_memory(arm, length) for length in lengths for arm in MEMORY_ARMS],
        **_headline(rows),
    }


def _on_off(model: str, prompt: int, new: int, rounds: int, batches: tuple[int, ...] = (1, 8)) -> list[dict[str, Any]]:
    """Statistics on against off, and SDPA's `generate`, at each batch size."""
    loaded, plain = load_pair(model)
    engine, rows = Engine(loaded), []
    for batch in batches:
        inputs = [inputs_of(plain, prompt, seed) for seed in range(batch)]
        on, off = (prompts_of(loaded, inputs, new, signals=signals) for signals in (True, False))
        arms: Arms = {
            "statistics on": lambda on=on: run_engine(engine, on),  # type: ignore[misc]
            "statistics off": lambda off=off: run_engine(engine, off),  # type: ignore[misc]
            "generate sdpa": lambda inputs=inputs: run_transformers(plain, inputs, new),  # type: ignore[misc]
        }
        times = _take_turns(arms, rounds)
        rows.append(
            {
                "model": model, "prompt": prompt, "batch": batch, "new": new, **_medians(times),
                "overhead_on_over_off": _ratio(times, "statistics on", "statistics off"),
                "overhead_on_over_off_step": _ratio(times, "statistics on", "statistics off", step=True),
                "ratio_on_over_generate": _ratio(times, "statistics on", "generate sdpa"),
                "ratio_on_over_generate_step": _ratio(times, "statistics on", "generate sdpa", step=True),
                "ratio_off_over_generate": _ratio(times, "statistics off", "generate sdpa"),
            }
        )  # fmt: skip
    return rows


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


def _budgets(prompt: int, new: int) -> list[dict[str, Any]]:
    """Decode time and KV bytes at each budget; each answer is read and decoded by itself."""
    loaded, plain = load_pair("random-100m")
    engine, rows = Engine(loaded), []
    inputs = [inputs_of(plain, prompt, 0)]
    for ratio in RATIOS:
        budget = Budget() if ratio == 1 else Budget(POLICY, ratio=ratio)
        seen: list[int] = []
        times = run_engine(engine, prompts_of(loaded, inputs, new, signals=True, budget=budget), lambda: seen.append(engine.kv_bytes.owned))  # noqa: B023 - called within this turn
        rows.append({"ratio": ratio, "prompt": prompt, "step_milliseconds": _milliseconds(times.step), "kv_bytes": max(seen)})
    return rows


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


def _memory(arm: str, prompt: int) -> dict[str, Any]:
    """Peak resident memory of one answer beyond that of the loaded model, in a process of its own."""
    done = subprocess.run(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-m", "introspect_probes.cpu_memory", arm, str(prompt)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ProbesError(f"measuring the memory of {arm!r} at {prompt} tokens failed: {done.stderr.strip()[-500:]}")
    return {"arm": arm, "prompt": prompt, **json.loads(done.stdout.strip().splitlines()[-1])}


def run_arm(arm: str, prompt: int, new: int) -> Callable[[], Times]:
    """One arm ready to run once, with only its own model in memory."""
    if arm.startswith("statistics"):
        loaded = load_100m()
        inputs = inputs_of(loaded.model, prompt, 0, picture=prompt <= WHOLE_MAPS)
        prompts = prompts_of(loaded, [inputs], new, signals=arm == "statistics on")
        return lambda: run_engine(Engine(loaded), prompts)
    plain = build_100m("sdpa" if arm == "generate sdpa" else "eager")
    inputs = inputs_of(plain, prompt, 0, picture=prompt <= WHOLE_MAPS)
    if arm == "generate sdpa":
        return lambda: run_transformers(plain, [inputs], new)
    if prompt > WHOLE_MAPS:
        return lambda: run_eager_after_sdpa(plain, inputs, new)
    return lambda: run_transformers(plain, [inputs], new, attentions=True)
