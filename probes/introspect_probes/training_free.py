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


def perplexity(steps: Sequence[StepTrace]) -> float:
    """Perplexity of the answer, exp(-mean log-probability); lower is surer."""
    return float(np.exp(-mean_logprob(steps)))


def max_entropy(steps: Sequence[StepTrace]) -> float:
    """Largest entropy of a token's distribution, nats; lower is surer (half of CES, arXiv 2605.28264, which is fitted)."""
    return float(max(s.logits.entropy for s in steps if s.logits is not None))


def attention_entropy(steps: Sequence[StepTrace]) -> float:
    """Entropy of attention over the retained entries as a share of its largest value, mean over heads and tokens; lower is sharper."""
    values = []
    for row in _producing(steps):
        group = row.entropy.shape[1] // row.retained.shape[1]
        count = np.repeat(row.retained.sum(-1), group, axis=1)
        values.append(np.mean(row.entropy[count > 1] / np.log(count[count > 1])))
    return float(np.mean(values))


def head_consensus(steps: Sequence[StepTrace]) -> float:
    """Share of a layer's heads that look most at the same entry, mean over layers and tokens."""
    shares = []
    for row in _producing(steps):
        same = row.argmax_position[:, :, None] == row.argmax_position[:, None, :]
        shares.append(same.sum(2).max(1).mean() / row.argmax_position.shape[1])
    return float(np.mean(shares))


def image_output_share(steps: Sequence[StepTrace]) -> float:
    """How much of a head's output comes from the picture, mean over heads and tokens; VHD's question (arXiv 2412.13949) in one pass.

    NaN without a retained image entry.
    """
    values = [r.image_output_share for r in _producing(steps)]
    return float(np.nanmean(values)) if any(np.isfinite(v).any() for v in values) else float("nan")


def retrieval_share(steps: Sequence[StepTrace]) -> float:
    """Share of heads whose largest attention is on a prompt token that is the emitted one (retrieval heads, arXiv 2404.15574)."""
    shares = []
    for step in steps:
        if step.heads is None or step.logits is None:
            continue
        ids, places = step.prompt.token_ids, step.heads.argmax_position
        inside = (places >= 0) & (places < len(ids))
        shares.append(float((inside & (ids[np.clip(places, 0, len(ids) - 1)] == step.token_id)).mean()))
    return float(np.mean(shares))


def waad(steps: Sequence[StepTrace], share: float = 0.3) -> float:
    """WAAD (arXiv 2510.13554): attention distance (tokens, cut at 10) of the local heads, the `share` that look nearest."""
    rows = _producing(steps)
    far = np.mean([r.mean_distance for r in rows], axis=0).ravel()
    local = np.argsort(far, kind="stable")[: max(1, round(share * far.size))]
    return float(np.mean([r.windowed_distance.ravel()[local].mean() for r in rows]))


def window_retention(steps: Sequence[StepTrace]) -> float:
    """Share of the prompt window's attention that the budget kept, mean over KV heads and segments; 1 for a whole cache."""
    retention = steps[0].prompt.retention
    return float(np.nanmean(retention)) if np.isfinite(retention).any() else float("nan")


@dataclass(frozen=True)
class Estimator:
    """A training-free score by name.

    Attributes:
        title: as it is called in reports.
        source: the paper, or what it is.
        sign: 1 where a higher value speaks for a right answer, -1 where a lower one does.
        compute: takes `words_of` the steps of one answer; NaN where the answer does not allow it.
    """

    title: str
    source: str
    sign: int
    compute: Callable[[Sequence[StepTrace]], float]

    def __call__(self, steps: Sequence[StepTrace]) -> float:
        """The score of an answer's steps."""
        return self.compute(steps)


SCORES: dict[str, Estimator] = {
    "mean_logprob": Estimator("mean logprob", "logits", 1, mean_logprob),
    "perplexity": Estimator("perplexity", "logits", -1, perplexity),
    "min_probability": Estimator("min probability", "logits", 1, min_probability),
    "mean_entropy": Estimator("entropy", "logits", -1, mean_entropy),
    "max_entropy": Estimator("max entropy", "logits; see CES, arXiv 2605.28264", -1, max_entropy),
    "visual_attention_score": Estimator("VAS", "arXiv 2603.03825", 1, visual_attention_score),
    "svar": Estimator("SVAR", "arXiv 2411.16724", 1, svar),
    "lookback_ratio": Estimator("lookback ratio", "arXiv 2407.07071", 1, lookback_ratio),
    "prelim_attention_score": Estimator("PAS", "arXiv 2511.11502", -1, prelim_attention_score),
    "attention_score": Estimator("AttentionScore", "LLM-Check, NeurIPS 2024", 1, attention_score),
    "rauq": Estimator("RAUQ", "arXiv 2505.20045", -1, rauq),
    "waad": Estimator("WAAD", "arXiv 2510.13554", -1, waad),
    "retrieval_share": Estimator("retrieval share", "retrieval heads, arXiv 2404.15574", 1, retrieval_share),
    "image_output_share": Estimator("image output share", "VHD's question, arXiv 2412.13949", 1, image_output_share),
    "head_consensus": Estimator("head consensus", "this project", 1, head_consensus),
    "attention_entropy": Estimator("attention entropy", "this project", -1, attention_entropy),
    "window_retention": Estimator("window retention", "this project", 1, window_retention),
}
"""Every score by its name. FAI (arXiv 2510.13554) is not among them: it needs the attention that each generated token received
later, which steps do not carry."""


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
