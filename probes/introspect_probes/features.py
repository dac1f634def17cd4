"""Features of a token: the one code that turns steps into numbers, online and offline.

Four families, each a named block, so that probes and baselines choose among them:

- `heads`: per-head statistics of the producing and the reading row, with what the budget did to the cache;
- `logits`: the distribution the token was chosen from, and the answer's so far;
- `place`: position in the answer and repetition of the word;
- `kind`: what the claim is about.

Per-head, because averages over heads mostly encode position (HaloProbe, arXiv
2604.06165). An absent statistic (NaN) becomes 0 beside an indicator of how much
was retained; log-sum-exp enters as it is, to be standardised per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect.types import HeadRow, LogitStats, PromptInfo, StepTrace
from introspect_kernels import Segment
from introspect_probes.worlds.claims import CLAIM_KINDS

Array = NDArray[np.float32]

_PER_HEAD = (
    "lse", "entropy", "sum_sq", "max_prob", "image_entropy", "image_max", "image_output_share",
    "self_mass", "previous_mass", "mean_distance", "windowed_distance",
)  # fmt: skip
_MASSES = (Segment.SINK, Segment.TEMPLATE, Segment.IMAGE, Segment.CONTEXT, Segment.QUESTION, Segment.GENERATED)
LAYER_STATISTICS = ("image_gini", "image_participation", "image_active", "consensus")
_RETAINED = (Segment.IMAGE, Segment.CONTEXT, Segment.QUESTION)
LOGITS = (
    "logprob", "entropy", "margin", "top1", "top2", "top3", "top4", "top5",
    "mean_logprob", "min_logprob", "mean_entropy", "max_entropy", "previous_logprob", "next_entropy",
)  # fmt: skip
PLACE = ("index", "log_index", "repetition", "first")


@dataclass(frozen=True)
class Shape:
    """Layers, query heads and KV heads of the model that features come from."""

    layers: int
    heads: int
    kv_heads: int


def head_feature_names(shape: Shape) -> tuple[str, ...]:
    """Names of the `heads` block, in order: `producing.L2.H5.lse` and the like."""
    names = []
    for row in ("producing", "reading"):
        per_head = (*_PER_HEAD, *(f"mass_{segment.name.lower()}" for segment in _MASSES))
        names += [f"{row}.L{layer}.H{head}.{n}" for n in per_head for layer in range(shape.layers) for head in range(shape.heads)]
        names += [f"{row}.L{layer}.{n}" for n in LAYER_STATISTICS for layer in range(shape.layers)]
    for segment in _RETAINED:
        for what in ("retained", "retention"):
            names += [f"{what}_{segment.name.lower()}.L{layer}.K{h}" for layer in range(shape.layers) for h in range(shape.kv_heads)]
    return tuple(names)


def parse_head_feature(name: str, shape: Shape) -> tuple[str, str, int]:
    """Source (`producing`, `reading`, `budget`), statistic and flat index (over layers and heads, or over layers) of one of these names."""
    parts = name.split(".")
    if parts[0] in ("producing", "reading"):
        layer = int(parts[1][1:])
        flat = layer if len(parts) == 3 else layer * shape.heads + int(parts[2][1:])
        return parts[0], parts[-1], flat
    return "budget", parts[0], int(parts[1][1:]) * shape.kv_heads + int(parts[2][1:])


def head_features(producing: HeadRow, reading: HeadRow | None, prompt: PromptInfo, position: int) -> Array:
    """The `heads` block of one token, `[len(head_feature_names)]`.

    Args:
        producing: the row that predicted it.
        reading: the row that read it; the producing row again while there is none.
        prompt: whose answer it is.
        position: token index of the producing query, which scales distances and entropies.
    """
    parts = [_row(producing, position), _row(reading if reading is not None else producing, position + 1)]
    logical = np.maximum(prompt.logical, 1)
    for segment in _RETAINED:
        parts.append((producing.retained[:, :, segment] / logical[segment]).ravel())
        parts.append(np.nan_to_num(prompt.retention[:, :, segment], nan=1.0).ravel())
    return np.concatenate(parts).astype(np.float32)


def _row(row: HeadRow, position: int) -> NDArray[np.floating]:
    retained = row.retained.sum(-1)
    group = row.lse.shape[1] // retained.shape[1]
    log_n = np.log(np.maximum(np.repeat(retained, group, axis=1), 2))
    log_image = np.log(np.maximum(np.repeat(row.retained[:, :, Segment.IMAGE], group, axis=1), 2))
    scaled = {
        "entropy": row.entropy / log_n,
        "image_entropy": row.image_entropy / log_image,
        "mean_distance": row.mean_distance / max(1, position),
        "windowed_distance": row.windowed_distance / 10.0,
    }
    per_head = [np.nan_to_num(scaled.get(name, getattr(row, name)), nan=0.0, neginf=0.0).ravel() for name in _PER_HEAD]
    masses = [row.mass[:, :, segment].ravel() for segment in _MASSES]
    return np.concatenate([*per_head, *masses, across_heads(row.mass[:, :, Segment.IMAGE], row.argmax_position).ravel()])


def across_heads(image_mass: NDArray[np.floating], argmax: NDArray[np.integer]) -> NDArray[np.floating]:
    """How unevenly a layer's heads share in looking at the image: each of `LAYER_STATISTICS`.

    Args:
        image_mass: `[..., layers, heads]`.
        argmax: positions of the largest attention, `[..., layers, heads]`.

    Returns:
        `[4, ..., layers]`.
    """
    return np.stack([layer_statistic(name, image_mass, argmax) for name in LAYER_STATISTICS])


def layer_statistic(name: str, image_mass: NDArray[np.floating], argmax: NDArray[np.integer]) -> NDArray[np.floating]:
    """One of `LAYER_STATISTICS`, `[..., layers]`.

    Gini coefficient and participation ratio of the image mass over heads, the
    share of heads that give the image over half of their mass, and the share of
    heads that agree with the commonest argmax (head agreement).
    """
    heads = image_mass.shape[-1]
    if name == "consensus":
        return np.asarray(largest_party(argmax) / heads)
    if name == "image_active":
        return np.asarray((image_mass > 0.5).sum(-1) / heads)
    image = np.where(np.isnan(image_mass), 0.0, image_mass).astype(np.float64)
    total = np.maximum(image.sum(-1), 1e-9)
    if name == "image_participation":
        return np.asarray(total**2 / (heads * np.maximum(np.einsum("...h,...h->...", image, image), 1e-12)))
    rank = 2.0 * np.arange(1, heads + 1)
    return np.asarray(np.sort(image, axis=-1) @ rank / (heads * total) - (heads + 1) / heads)


def largest_party(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """How often the commonest value of the last axis occurs: the longest run once they are sorted."""
    ordered = np.sort(values, axis=-1)
    same = ordered[..., 1:] == ordered[..., :-1]
    run = longest = np.ones(values.shape[:-1], dtype=np.int64)
    for place in range(same.shape[-1]):
        run = run * same[..., place] + 1
        longest = np.maximum(longest, run)
    return longest


def logit_features(so_far: Sequence[LogitStats], following: LogitStats | None) -> Array:
    """The `logits` block of the last token of `so_far`, in the order of `LOGITS`.

    Args:
        so_far: statistics of the answer's tokens up to and including this one.
        following: those of the next token, if it is known; its entropy is the model's own doubt after speaking.
    """
    own = so_far[-1]
    top = [*own.top_logprobs[:5], *[-20.0] * 5][:5]
    logprobs = np.array([g.logprob for g in so_far])
    entropies = np.array([g.entropy for g in so_far])
    values = [own.logprob, own.entropy, own.margin, *top, logprobs.mean(), logprobs.min(), entropies.mean(), entropies.max()]
    values += [so_far[-2].logprob if len(so_far) > 1 else 0.0, following.entropy if following is not None else own.entropy]
    return np.clip(np.array(values, dtype=np.float32), -30, 30)


def place_features(tokens: Sequence[int]) -> Array:
    """The `place` block of the last of `tokens`, in the order of `PLACE`: index in the answer, times said before."""
    repetition = sum(t == tokens[-1] for t in tokens[:-1])
    index = len(tokens) - 1
    return np.array([index, np.log1p(index), min(repetition, 4), index == 0], dtype=np.float32)


def kind_features(kind: str) -> Array:
    """The `kind` block: which of `CLAIM_KINDS` a claim is, one-hot."""
    return np.array([kind == known for known in CLAIM_KINDS], dtype=np.float32)


@dataclass(frozen=True)
class TokenFeatures:
    """All blocks of one token."""

    heads: Array
    logits: Array
    place: Array


def token_features(steps: Sequence[StepTrace], index: int, following: StepTrace | None) -> TokenFeatures | None:
    """Features of token `index` of an answer whose steps up to it are given.

    Args:
        steps: the answer's steps from the first one on.
        index: which token.
        following: the next step, which holds the reading row; without it the features are provisional.

    Returns:
        The features, or `None` for a step without head statistics.
    """
    step = steps[index]
    if step.heads is None or step.logits is None:
        return None
    so_far = [s.logits for s in steps[: index + 1] if s.logits is not None]
    reading = following.heads if following is not None else None
    return TokenFeatures(
        head_features(step.heads, reading, step.prompt, step.position),
        logit_features(so_far, following.logits if following is not None else None),
        place_features([s.token_id for s in steps[: index + 1]]),
    )
