"""How long scoring one token takes, vectorised over a batch: `python -m introspect_probes.scoring_benchmark --out FILE`.

A probe set of random weights on a model of the given shape; statistics are random, as their values do not matter.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from introspect.provenance import provenance
from introspect.types import EffectiveBudget, HeadRow, PromptInfo
from introspect_kernels import INDICES, NUM_SEGMENTS, REALS
from introspect_probes.batch_scoring import BatchScorer, TokenBatch
from introspect_probes.claim_probe import ClaimProbe, budget_features
from introspect_probes.features import LOGITS, PLACE, Shape, head_feature_names, kind_features
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, LinearProbe, Platt
from introspect_probes.probe_set import ProbeSet, answer_tails
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_probe import StrategyProbe
from introspect_probes.worlds.claims import CLAIM_KINDS

PROMPT = 600


def scoring_benchmark(shape: Shape, *, batch: int = 32, weights: int = 1000, repeats: int = 100, seed: int = 0) -> dict[str, Any]:
    """Time the scoring of a batch of tokens: risk, strategy, and confidence so far, from the engine's rows to probabilities.

    Args:
        shape: of the model.
        batch: tokens scored together, one of each answer.
        weights: head features with a weight, in each of the three probes.
        repeats: how often it is timed.
        seed: of weights and statistics.

    Returns:
        A benchmark row; `milliseconds_per_token` has the median, and the 5th and 95th percentile, of the clock's time;
        `processor_milliseconds_per_token` of the time that the process itself was running, which other programs do not lengthen.
    """
    rng = np.random.default_rng(seed)
    scorer = BatchScorer(random_probes(shape, weights, rng))
    prompts = [random_prompt(shape, rng) for _ in range(batch)]
    rows = [[random_row(shape, rng) for _ in range(batch)] for _ in range(2)]
    logits = rng.standard_normal((batch, len(LOGITS))).astype(np.float32)
    place = rng.standard_normal((batch, len(PLACE))).astype(np.float32)
    reduced = np.zeros(batch, dtype=bool)
    took, worked = [], []
    for _ in range(repeats + 3):
        start, began = time.perf_counter(), time.process_time()
        producing, reading = (HeadRow.joined(each) for each in rows)
        tokens = TokenBatch(producing, reading, np.full(batch, PROMPT), logits, place, ["digit"] * batch, prompts)
        signals = scorer.score(tokens)
        risks = signals.risk if signals.risk is not None else np.zeros(batch)
        one = np.ones(batch)
        summary = np.stack([risks, risks, np.log1p(-np.clip(risks, 1e-4, 1 - 1e-4)), one, one], axis=1)
        tails = answer_tails(logits, summary, np.tile(kind_features("digit"), (batch, 1)), np.tile(budget_features(prompts[0]), (batch, 1)))
        scorer.confidence(signals.confidence_heads, np.ones(batch, dtype=np.int64), tails, reduced)
        took.append((time.perf_counter() - start) / batch * 1e3)
        worked.append((time.process_time() - began) / batch * 1e3)
    return {
        "benchmark": "scoring",
        "cases": [
            {
                "layers": shape.layers, "heads": shape.heads, "kv_heads": shape.kv_heads, "batch": batch,
                "head_features": len(head_feature_names(shape)), "weights_per_probe": weights, "repeats": repeats,
                "milliseconds_per_token": _spread(took[3:]), "processor_milliseconds_per_token": _spread(worked[3:]),
            }
        ],
        "provenance": provenance(),
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [5, 50, 95])
    return {"median": round(float(median), 4), "p5": round(float(low), 4), "p95": round(float(high), 4)}


def random_probes(shape: Shape, weights: int, rng: np.random.Generator) -> ProbeSet:
    """A probe set of random weights that keeps `weights` head features in each probe."""
    heads, kinds = len(head_feature_names(shape)), len(CLAIM_KINDS)
    tail = len(LOGITS) + kinds + 6 + 2

    def probe(extra: int, outputs: int = 1) -> LinearProbe:
        count = heads + extra
        weight = np.zeros((outputs, count), dtype=np.float32)
        kept = np.r_[rng.choice(heads, min(weights, heads), replace=False), np.arange(heads, count)]
        weight[:, kept] = rng.normal(0, 0.1, (outputs, len(kept)))
        return LinearProbe(np.zeros(count, np.float32), np.ones(count, np.float32), weight, np.zeros(outputs, np.float32))

    platt = BudgetedPlatt(Platt(-1.0, 0.0), Platt(-1.0, 0.0))
    place = len(PLACE) + kinds + 2
    prior = LinearProbe(np.zeros(place, np.float32), np.ones(place, np.float32), np.zeros((1, place), np.float32), np.zeros(1, np.float32))
    return ProbeSet(
        manifest={"name": "random", "model": {"shape": vars(shape)}},
        confidence=BudgetedProbe.one(probe(tail)),
        confidence_calibration=platt,
        claims=ClaimProbe(BudgetedProbe.one(probe(len(LOGITS) + kinds)), BudgetedProbe.one(prior), platt, platt),
        strategy=StrategyProbe(probe(0, len(STRATEGIES)), STRATEGIES, 1.0, (0.1,) * len(STRATEGIES)),
    )


def random_prompt(shape: Shape, rng: np.random.Generator) -> PromptInfo:
    """A prompt of `PROMPT` tokens."""
    return PromptInfo(
        request_id="", question="", token_ids=np.zeros(PROMPT, np.int64), segments=np.zeros(PROMPT, np.uint8), image_embedding=None,
        image_grids=(), budget=EffectiveBudget("full", PROMPT, PROMPT, PROMPT), logical=np.full(NUM_SEGMENTS, 100, np.int32),
        retention=rng.random((shape.layers, shape.kv_heads, NUM_SEGMENTS), dtype=np.float32),
    )  # fmt: skip


def random_row(shape: Shape, rng: np.random.Generator) -> HeadRow:
    """A row of random statistics, some of them absent."""
    size = (shape.layers, shape.heads)
    values = {name: rng.random(size, dtype=np.float32) for name in REALS}
    values["image_entropy"][0, 0] = np.nan
    places = {name: rng.integers(0, PROMPT, size).astype(np.int32) for name in INDICES}
    mass = rng.dirichlet(np.ones(NUM_SEGMENTS), size).astype(np.float32)
    retained = rng.integers(1, 100, (shape.layers, shape.kv_heads, NUM_SEGMENTS)).astype(np.int32)
    return HeadRow.of(values | places | {"mass": mass, "retained": retained})


def main(
    *,
    out: Annotated[Path, typer.Option(help="Where to write the JSON row.")],
    layers: int = 28,
    heads: int = 28,
    kv_heads: int = 4,
    batch: int = 32,
    weights: int = 1000,
    repeats: int = 100,
) -> None:
    """Time scoring and write the row."""
    row = scoring_benchmark(Shape(layers, heads, kv_heads), batch=batch, weights=weights, repeats=repeats)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
