"""Training-free scores: what is said where no probe set fits, and what probes are compared with.

Each is a published score or a plain statistic, computed from the engine's
steps alone. None is a probability and none is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from introspect.loading import LoadedModel
from introspect.types import HeadRow, PromptInfo, StepTrace
from introspect_kernels import Segment
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, TokenSignal

_FLOOR = 1e-6


def words_of(steps: Sequence[StepTrace]) -> list[StepTrace]:
    """An answer's steps as the scores take them: of a control token only its row is kept, which read the word before it."""
    return [replace(s, logits=None) if s.is_special else s for s in steps]


def mean_logprob(steps: Sequence[StepTrace]) -> float:
    """Mean log-probability of the tokens, nats; higher is surer."""
    return float(np.mean([s.logits.logprob for s in steps if s.logits is not None]))


def min_probability(steps: Sequence[StepTrace]) -> float:
    """Probability of the least probable token; higher is surer."""
    return float(np.exp(min(s.logits.logprob for s in steps if s.logits is not None)))


def mean_entropy(steps: Sequence[StepTrace]) -> float:
    """Mean entropy of the tokens' distributions, nats; lower is surer."""
    return float(np.mean([s.logits.entropy for s in steps if s.logits is not None]))


def _producing(steps: Sequence[StepTrace]) -> list[HeadRow]:
    return [s.heads for s in steps if s.heads is not None and s.logits is not None]


def _reading(steps: Sequence[StepTrace]) -> list[HeadRow]:
    return [after.heads for before, after in pairwise(steps) if before.logits is not None and after.heads is not None]


def visual_attention_score(steps: Sequence[StepTrace]) -> float:
    """VAS (arXiv 2603.03825): image mass over the mass on template and system tokens, mean over heads and tokens."""
    ratios = [r.mass[:, :, Segment.IMAGE].mean() / max(float(r.mass[:, :, Segment.TEMPLATE].mean()), _FLOOR) for r in _producing(steps)]
    return float(np.mean(ratios))


def svar(steps: Sequence[StepTrace]) -> float:
    """SVAR (arXiv 2411.16724): image mass in the middle layers (from 5/32 to 18/32 of the depth), mean over heads, sum over layers."""
    rows = _producing(steps)
    depth = rows[0].mass.shape[0]
    first, last = round(depth * 5 / 32), max(round(depth * 18 / 32), round(depth * 5 / 32) + 1)
    return float(np.mean([r.mass[first:last, :, Segment.IMAGE].mean(1).sum() for r in rows]))


def lookback_ratio(steps: Sequence[StepTrace]) -> float:
    """Lookback ratio (arXiv 2407.07071): mean attention on the prompt over that plus mean attention on generated tokens."""
    ratios = []
    for row in _producing(steps):
        group = row.mass.shape[1] // row.retained.shape[1]
        counts = np.repeat(row.retained, group, axis=1).astype(np.float64)
        prompt = row.mass[:, :, : Segment.GENERATED].sum(-1) / np.maximum(counts[:, :, : Segment.GENERATED].sum(-1), 1)
        new = row.mass[:, :, Segment.GENERATED] / np.maximum(counts[:, :, Segment.GENERATED], 1)
        ratios.append(float((prompt / np.maximum(prompt + new, _FLOOR)).mean()))
    return float(np.mean(ratios))


def prelim_attention_score(steps: Sequence[StepTrace]) -> float:
    """PAS (arXiv 2511.11502): mass on generated tokens in the first layer, mean over heads and tokens."""
    return float(np.mean([r.mass[0, :, Segment.GENERATED].mean() for r in _producing(steps)]))


def attention_score(steps: Sequence[StepTrace]) -> float:
    """AttentionScore of LLM-Check (NeurIPS 2024): mean log of a token's attention to itself, summed over heads of the middle layer."""
    rows = _reading(steps)
    if not rows:
        return float("nan")
    middle = rows[0].self_mass.shape[0] // 2
    return float(np.mean([np.log(np.maximum(r.self_mass[middle], _FLOOR)).sum() for r in rows]))


def rauq(steps: Sequence[StepTrace], alpha: float = 0.2) -> float:
    """RAUQ (arXiv 2505.20045): recurrent uncertainty over the middle third of layers, each with its most backward-looking head."""
    tokens = [s for s in steps if s.logits is not None]
    rows = _reading(steps)
    if len(rows) < 2:
        return float(-np.mean([s.logits.logprob for s in tokens if s.logits is not None]))
    depth = rows[0].previous_mass.shape[0]
    layers = range(depth // 3, -(-2 * depth // 3))
    previous = np.nan_to_num(np.stack([r.previous_mass for r in rows]))
    worst = -np.inf
    for layer in layers:
        head = int(previous[1:, layer].mean(0).argmax())
        confidence = [float(np.exp(tokens[0].logits.logprob))] if tokens[0].logits is not None else [1.0]
        for t in range(1, len(rows)):
            logits = tokens[t].logits
            p = float(np.exp(logits.logprob)) if logits is not None else 1.0
            confidence.append(alpha * p + (1 - alpha) * float(previous[t, layer, head]) * confidence[-1])
        worst = max(worst, 1 - float(np.mean(np.log(np.maximum(confidence, _FLOOR)))))
    return worst


SCORES: dict[str, Callable[[Sequence[StepTrace]], float]] = {
    "mean_logprob": mean_logprob,
    "min_probability": min_probability,
    "mean_entropy": mean_entropy,
    "visual_attention_score": visual_attention_score,
    "svar": svar,
    "lookback_ratio": lookback_ratio,
    "prelim_attention_score": prelim_attention_score,
    "attention_score": attention_score,
    "rauq": rauq,
}
"""Every score by its name; each takes `words_of` the steps of one answer."""


@dataclass
class TrainingFreeScores:
    """A `Session` that gives training-free scores and no probabilities."""

    prompt: PromptInfo
    note: str | None = None
    _steps: list[StepTrace] = field(default_factory=list)

    def step(self, step: StepTrace) -> StepSignals:
        """See `Session`."""
        index = len(self._steps)
        self._steps.append(step)
        revised = TokenSignal(index - 1, None, None, None, is_final=True) if index else None
        current = TokenSignal(index, None, None, None, is_final=False) if step.logits is not None else None
        return StepSignals(current, revised)

    def finish(self) -> AnswerSignal:
        """See `Session`."""
        words = words_of(self._steps)
        has_words = any(s.logits is not None for s in words)
        values = {name: score(words) for name, score in SCORES.items()} if has_words else {}
        return AnswerSignal(
            confidence=None,
            hallucination_risk=None,
            strategy=None,
            spans=(),
            calibrated=False,
            probe_set=None,
            in_domain=None,
            note=self.note,
            scores={name: value for name, value in values.items() if np.isfinite(value)},
        )


@dataclass(frozen=True)
class TrainingFree:
    """The `Scorer` where no probe set fits the model, or none is wanted; `reason` is told beside every answer."""

    model: LoadedModel
    reason: str | None = None
    name: str | None = None

    def session(self, prompt: PromptInfo) -> TrainingFreeScores:
        """Begin to score the answer to `prompt`."""
        reason = self.reason or f"no probe set fits {self.model.name}"
        return TrainingFreeScores(prompt, note=f"{reason}: scores are training-free and not calibrated")
