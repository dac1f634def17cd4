"""Training-free scores: what is said where no probe set fits, and what probes are compared with.

Each is a published score or a plain statistic, computed from the engine's
steps alone. None is a probability and none is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect.loading import LoadedModel
from introspect.types import HeadRow, PromptInfo, StepTrace
from introspect_probes.compiled_scores import compiled
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, TokenSignal


class Attended(NamedTuple):
    """What an answer's rows tell, see the functions of these names; NaN where the answer does not allow it."""

    visual_attention_score: float
    svar: float
    lookback_ratio: float
    prelim_attention_score: float
    attention_score: float
    rauq: float
    waad: float
    retrieval_share: float
    image_output_share: float
    head_consensus: float
    attention_entropy: float


class Words:
    """An answer as the scores take it: its words' steps, and their rows joined when the first score asks for them.

    Args:
        steps: the answer's steps; of a control token only its row is kept, which read the word before it.
    """

    def __init__(self, steps: Sequence[StepTrace]) -> None:
        told = steps[-1].influence
        self.prompt = steps[0].prompt
        spoken = [s for s in steps if s.logits is not None and not s.is_special]
        self.influence = None if told is None else told[[s.index for s in spoken]]
        """What the words received from later ones, `[words, layers, kv_heads]`; `None` where it was not kept."""
        self.logits = [s.logits for s in spoken if s.logits is not None]
        self._rows: list[HeadRow] = []
        self._predicting, self._reading, self._said = list[int](), list[int](), list[int]()
        follows = False
        for step in steps:
            is_word = step.logits is not None and not step.is_special
            if step.heads is not None:
                number = len(self._rows)
                self._rows.append(step.heads)
                if follows:
                    self._reading.append(number)
                if is_word:
                    self._predicting.append(number)
                    self._said.append(step.token_id)
            follows = is_word

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

    @cached_property
    def distances(self) -> NDArray[np.float32]:
        """`mean_distance` of the rows that read the words, `[words, layers, heads]`, tokens."""
        return np.stack([self._rows[number].mean_distance for number in self._reading])

    @cached_property
    def attended(self) -> Attended:
        """All that is read from rows, worked out at once."""
        if not self._predicting:
            return Attended(*[np.nan] * len(Attended._fields))
        row = HeadRow.joined(self._rows)
        ids = (np.array(each, dtype=np.int64) for each in (self._predicting, self._reading))
        said = np.array(self._said, dtype=np.int64)
        found = compiled()(row.reals, row.indices, row.mass, row.retained, *ids, self.prompt.token_ids, said, np.exp(self.logprobs))
        return Attended(*found)


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
    return words.attended.visual_attention_score


def svar(words: Words) -> float:
    """SVAR (arXiv 2411.16724): image mass in the middle layers (from 5/32 to 18/32 of the depth), mean over heads, sum over layers."""
    return words.attended.svar


def lookback_ratio(words: Words) -> float:
    """Lookback ratio (arXiv 2407.07071): mean attention on the prompt over that plus mean attention on generated tokens."""
    return words.attended.lookback_ratio


def prelim_attention_score(words: Words) -> float:
    """PAS (arXiv 2511.11502): mass on generated tokens in the first layer, mean over heads and tokens."""
    return words.attended.prelim_attention_score


def attention_score(words: Words) -> float:
    """AttentionScore of LLM-Check (NeurIPS 2024): mean log of a token's attention to itself, summed over heads of the middle layer."""
    return words.attended.attention_score


def rauq(words: Words) -> float:
    """RAUQ (arXiv 2505.20045): recurrent uncertainty over the middle third of layers, each with its most backward-looking head."""
    return words.attended.rauq if words.readings > 1 else float(-words.logprobs.mean())


def perplexity(words: Words) -> float:
    """Perplexity of the answer, exp(-mean log-probability); lower is surer."""
    return float(np.exp(-mean_logprob(words)))


def max_entropy(words: Words) -> float:
    """Largest entropy of a token's distribution, nats; lower is surer (half of CES, arXiv 2605.28264, which is fitted)."""
    return float(words.entropies.max())


def attention_entropy(words: Words) -> float:
    """Entropy of attention over the retained entries as a share of its largest value, mean over heads and tokens; lower is sharper."""
    return words.attended.attention_entropy


def head_consensus(words: Words) -> float:
    """Share of a layer's heads that look most at the same entry, mean over layers and tokens."""
    return words.attended.head_consensus


def image_output_share(words: Words) -> float:
    """How much of a head's output comes from the picture, mean over heads and tokens; VHD's question (arXiv 2412.13949) in one pass.

    NaN without a retained image entry.
    """
    return words.attended.image_output_share


def retrieval_share(words: Words) -> float:
    """Share of heads whose largest attention is on a prompt token that is the emitted one (retrieval heads, arXiv 2404.15574)."""
    return words.attended.retrieval_share


def waad(words: Words) -> float:
    """WAAD (arXiv 2510.13554): attention distance (tokens, cut at 10) of the local heads, the three tenths that look nearest."""
    return words.attended.waad


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
    far = words.distances.mean(0).reshape(layers, kv_heads, -1).mean(-1).ravel()
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

    def __post_init__(self) -> None:
        """Make compiled code now: the first answer's end would wait for it."""
        compiled()

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> TrainingFreeScores:  # noqa: ARG002 - nothing to work out
        """Begin to score the answer to `prompt`."""
        reason = self.reason or f"no probe set fits {self.model.name}"
        return TrainingFreeScores(prompt, note=f"{reason}: scores are training-free and not calibrated")
