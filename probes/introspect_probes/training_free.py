"""Training-free scores: what is said where no probe set fits, and what probes are compared with.

Each is a published score or a plain statistic, computed from the engine's
steps alone. None is a probability and none is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.loading import LoadedModel
from introspect.types import HeadRow, PromptInfo, StepTrace
from introspect_kernels import INDICES, REALS, Segment
from introspect_probes.features import largest_party
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, TokenSignal

_FLOOR = 1e-6
_PLANES = {name: (block, plane) for block, names in (("reals", REALS), ("indices", INDICES)) for plane, name in enumerate(names)}
"""Where a row has the statistics that are one number a head."""


class Words:
    """An answer as the scores take it: its words' steps, and their statistics stacked, each when it is first asked for.

    Args:
        steps: the answer's steps; of a control token only its row is kept, which read the word before it.
    """

    def __init__(self, steps: Sequence[StepTrace]) -> None:
        steps = [replace(s, logits=None) if s.is_special else s for s in steps]
        self.prompt = steps[0].prompt
        told = steps[-1].influence
        self.influence = None if told is None else told[[s.index for s in steps if s.logits is not None]]
        """What the words received from later ones, `[words, layers, kv_heads]`; `None` where it was not kept."""
        self.logits = [s.logits for s in steps if s.logits is not None]
        predicting = [s for s in steps if s.heads is not None and s.logits is not None]
        self.token_ids = np.array([s.token_id for s in predicting])
        self._producing = [s.heads for s in predicting if s.heads is not None]
        self._reading = [after.heads for before, after in pairwise(steps) if before.logits is not None and after.heads is not None]
        self._stacks: dict[tuple[bool, str], NDArray[Any]] = {}

    @property
    def readings(self) -> int:
        """How many words have the row that read them."""
        return len(self._reading)

    @cached_property
    def logprobs(self) -> NDArray[np.float64]:
        """Of the words, nats."""
        return np.array([logits.logprob for logits in self.logits])

    @cached_property
    def entropies(self) -> NDArray[np.float64]:
        """Of the distributions they were chosen from, nats."""
        return np.array([logits.entropy for logits in self.logits])

    def producing(self, name: str) -> NDArray[Any]:
        """A statistic of the rows that predicted the words, `[words, layers, heads, ...]`."""
        return self._stack(name, self._producing, of_reading=False)

    def reading(self, name: str) -> NDArray[Any]:
        """A statistic of the rows that read them."""
        return self._stack(name, self._reading, of_reading=True)

    def retained(self, segments: slice) -> NDArray[np.int32]:
        """Entries of some segments that each query head could attend to, `[words, layers, heads]`."""
        kept, heads = _total(self.producing("retained")[..., segments]), self.producing("mass").shape[2]
        return np.repeat(kept, heads // kept.shape[2], axis=2)

    def _stack(self, name: str, rows: list[HeadRow], *, of_reading: bool) -> NDArray[Any]:
        """A statistic, or one of the arrays that a row has."""
        if (of_reading, name) not in self._stacks:
            if name in _PLANES:
                block, plane = _PLANES[name]
                found = np.ascontiguousarray(self._stack(block, rows, of_reading=of_reading)[:, plane])
            else:
                arrays = [getattr(row, name) for row in rows]  # one behind another: `np.stack` looks at each of them several times
                found = np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)
            self._stacks[of_reading, name] = found
        return self._stacks[of_reading, name]


def _total(values: NDArray[Any]) -> NDArray[Any]:
    """Sum over the last axis, where that is short: NumPy's own takes four times as long."""
    return np.asarray(reduce(np.add, np.moveaxis(values, -1, 0)))


def mean_logprob(words: Words) -> float:
    """Mean log-probability of the tokens, nats; higher is surer."""
    return float(words.logprobs.mean())


def min_probability(words: Words) -> float:
    """Probability of the least probable token; higher is surer."""
    return float(np.exp(words.logprobs.min()))


def mean_entropy(words: Words) -> float:
    """Mean entropy of the tokens' distributions, nats; lower is surer."""
    return float(words.entropies.mean())


def visual_attention_score(words: Words) -> float:
    """VAS (arXiv 2603.03825): image mass over the mass on template and system tokens, mean over heads and tokens."""
    mass = words.producing("mass")
    image, template = (mass[..., segment].mean((1, 2)) for segment in (Segment.IMAGE, Segment.TEMPLATE))
    return float((image / np.maximum(template, _FLOOR)).mean())


def svar(words: Words) -> float:
    """SVAR (arXiv 2411.16724): image mass in the middle layers (from 5/32 to 18/32 of the depth), mean over heads, sum over layers."""
    mass = words.producing("mass")
    depth = mass.shape[1]
    first, last = round(depth * 5 / 32), max(round(depth * 18 / 32), round(depth * 5 / 32) + 1)
    return float(mass[:, first:last, :, Segment.IMAGE].mean(2).sum(1).mean())


def lookback_ratio(words: Words) -> float:
    """Lookback ratio (arXiv 2407.07071): mean attention on the prompt over that plus mean attention on generated tokens."""
    mass, before, behind = words.producing("mass"), slice(Segment.GENERATED), slice(Segment.GENERATED, Segment.GENERATED + 1)
    prompt = _total(mass[..., before]) / np.maximum(words.retained(before), 1)
    new = mass[..., Segment.GENERATED] / np.maximum(words.retained(behind), 1)
    return float((prompt / np.maximum(prompt + new, _FLOOR)).mean())


def prelim_attention_score(words: Words) -> float:
    """PAS (arXiv 2511.11502): mass on generated tokens in the first layer, mean over heads and tokens."""
    return float(words.producing("mass")[:, 0, :, Segment.GENERATED].mean())


def attention_score(words: Words) -> float:
    """AttentionScore of LLM-Check (NeurIPS 2024): mean log of a token's attention to itself, summed over heads of the middle layer."""
    if not words.readings:
        return float("nan")
    own = words.reading("self_mass")
    return float(np.log(np.maximum(own[:, own.shape[1] // 2], _FLOOR)).sum(1).mean())


def rauq(words: Words, alpha: float = 0.2) -> float:
    """RAUQ (arXiv 2505.20045): recurrent uncertainty over the middle third of layers, each with its most backward-looking head."""
    if words.readings < 2:
        return float(-words.logprobs.mean())
    previous = np.nan_to_num(words.reading("previous_mass")).astype(np.float64)
    depth, probabilities = previous.shape[1], np.exp(words.logprobs)
    layers = np.arange(depth // 3, -(-2 * depth // 3))
    looking = previous[:, layers, previous[1:, layers].mean(0).argmax(-1)]
    count = min(len(probabilities), len(looking))
    own, passed = (alpha * probabilities[1:count]).tolist(), ((1 - alpha) * looking[1:count]).T.tolist()
    first = float(probabilities[0])
    curves = [list(accumulate(zip(own, layer, strict=True), lambda last, at: at[0] + at[1] * last, initial=first)) for layer in passed]
    confidence = np.ascontiguousarray(np.array(curves).T)
    return float((1 - np.log(np.maximum(confidence, _FLOOR)).mean(0)).max())


def perplexity(words: Words) -> float:
    """Perplexity of the answer, exp(-mean log-probability); lower is surer."""
    return float(np.exp(-mean_logprob(words)))


def max_entropy(words: Words) -> float:
    """Largest entropy of a token's distribution, nats; lower is surer (half of CES, arXiv 2605.28264, which is fitted)."""
    return float(words.entropies.max())


def attention_entropy(words: Words) -> float:
    """Entropy of attention over the retained entries as a share of its largest value, mean over heads and tokens; lower is sharper."""
    entropy, count = words.producing("entropy"), words.retained(slice(None))
    several = count > 1
    shares = np.where(several, entropy / np.log(np.maximum(count, 2)), 0.0)
    return float((shares.sum((1, 2)) / several.sum((1, 2))).mean())


def head_consensus(words: Words) -> float:
    """Share of a layer's heads that look most at the same entry, mean over layers and tokens."""
    looked_at = words.producing("argmax_position")
    return float(largest_party(looked_at).mean() / looked_at.shape[-1])


def image_output_share(words: Words) -> float:
    """How much of a head's output comes from the picture, mean over heads and tokens; VHD's question (arXiv 2412.13949) in one pass.

    NaN without a retained image entry.
    """
    values = words.producing("image_output_share")
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def retrieval_share(words: Words) -> float:
    """Share of heads whose largest attention is on a prompt token that is the emitted one (retrieval heads, arXiv 2404.15574)."""
    ids, places = words.prompt.token_ids, words.producing("argmax_position")
    inside = (places >= 0) & (places < len(ids))
    return float((inside & (ids[np.clip(places, 0, len(ids) - 1)] == words.token_ids[:, None, None])).mean())


def waad(words: Words, share: float = 0.3) -> float:
    """WAAD (arXiv 2510.13554): attention distance (tokens, cut at 10) of the local heads, the `share` that look nearest."""
    far = words.producing("mean_distance").mean(0).ravel()
    local = np.argsort(far, kind="stable")[: max(1, round(share * far.size))]
    near = words.producing("windowed_distance")
    return float(near.reshape(len(near), -1)[:, local].mean())


def future_attention_influence(words: Words, share: float = 0.3) -> float:
    """FAI (arXiv 2510.13554): mean attention on a word from those 10 to 50 tokens later, in the global heads, mean over words.

    Global are the `share` of heads that look farthest back. The paper has single query heads; here a head is a KV head, and its
    attention and distance are means over the query heads that share it. The paper claims nothing of right and wrong answers:
    the sign is that of PAS, an answer that leans on itself. NaN where no word has one that comes ten tokens later, or where
    none was kept; layers with a window that is too short have none and are left out.
    """
    if words.influence is None or not np.isfinite(words.influence).any():
        return float("nan")
    values = words.influence.reshape(len(words.influence), -1)
    _, layers, kv_heads = words.influence.shape
    far = words.reading("mean_distance").mean(0).reshape(layers, kv_heads, -1).mean(-1).ravel()
    known = np.flatnonzero(np.isfinite(values).any(0))
    chosen = known[np.argsort(-far[known], kind="stable")[: max(1, round(share * known.size))]]
    whole = np.isfinite(values[:, chosen]).all(1)
    return float(values[whole][:, chosen].mean()) if whole.any() else float("nan")


def window_retention(words: Words) -> float:
    """Share of the prompt window's attention that the budget kept, mean over KV heads and segments; 1 for a whole cache."""
    retention = words.prompt.retention
    return float(np.nanmean(retention)) if np.isfinite(retention).any() else float("nan")


@dataclass(frozen=True)
class Estimator:
    """A training-free score by name.

    Attributes:
        title: as it is called in reports.
        source: the paper, or what it is.
        sign: 1 where a higher value speaks for a right answer, -1 where a lower one does.
        compute: takes one answer; NaN where the answer does not allow it.
    """

    title: str
    source: str
    sign: int
    compute: Callable[[Words], float]

    def __call__(self, words: Words) -> float:
        """The score of an answer."""
        return self.compute(words)


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
    "fai": Estimator("FAI", "arXiv 2510.13554", -1, future_attention_influence),
    "retrieval_share": Estimator("retrieval share", "retrieval heads, arXiv 2404.15574", 1, retrieval_share),
    "image_output_share": Estimator("image output share", "VHD's question, arXiv 2412.13949", 1, image_output_share),
    "head_consensus": Estimator("head consensus", "this project", 1, head_consensus),
    "attention_entropy": Estimator("attention entropy", "this project", -1, attention_entropy),
    "window_retention": Estimator("window retention", "this project", 1, window_retention),
}
"""Every score by its name. FAI is told where requests asked for it (`Request.influence`); a decode step is dearer then."""


@dataclass
class TrainingFreeScores:
    """A `Session` that gives training-free scores and no probabilities."""

    prompt: PromptInfo
    note: str | None = None
    _steps: list[StepTrace] = field(default_factory=list)

    def add(self, step: StepTrace) -> None:
        """Take a step without a word on it."""
        self._steps.append(step)

    def step(self, step: StepTrace) -> StepSignals:
        """See `Session`."""
        index = len(self._steps)
        self._steps.append(step)
        revised = TokenSignal(index - 1, None, None, None, is_final=True) if index else None
        current = TokenSignal(index, None, None, None, is_final=False) if step.logits is not None else None
        return StepSignals(current, revised)

    def finish(self) -> AnswerSignal:
        """See `Session`."""
        has_words = any(s.logits is not None and not s.is_special for s in self._steps)
        words = Words(self._steps) if has_words else None
        values = {name: score(words) for name, score in SCORES.items()} if words is not None else {}
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

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> TrainingFreeScores:  # noqa: ARG002 - nothing to work out
        """Begin to score the answer to `prompt`."""
        reason = self.reason or f"no probe set fits {self.model.name}"
        return TrainingFreeScores(prompt, note=f"{reason}: scores are training-free and not calibrated")
