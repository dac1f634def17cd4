"""Head statistics of one answer, kept small: rows of fp16, and one safetensors file that any language reads.

A safetensors file is eight bytes of header length (little endian), a JSON header with name, dtype, shape and offsets of
each array, and the arrays. Nothing in it can be executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from introspect.types import HeadRow, PromptInfo, StepTrace
from introspect_kernels import HeadStats, Segment

FORMAT = "introspect-answer/1"

HEAD_FIELDS = HeadStats._fields
_FP32 = ("lse", "mean_distance", "windowed_distance")  # of a size that fp16 cannot tell apart
_INT32 = ("argmax_position", "image_argmax_position", "retained")
DTYPES: dict[str, type[np.generic]] = {
    name: np.float32 if name in _FP32 else np.int32 if name in _INT32 else np.float16 for name in HEAD_FIELDS
}
"""In which precision each is kept."""
_PER_SEGMENT = ("mass", "retained")

Row = Mapping[str, NDArray[Any]]
"""One query's statistics by name: `[layers, heads]`, `mass` `[layers, heads, 6]`, `retained` `[layers, kv_heads, 6]`."""


def _statistics() -> dict[str, tuple[str, int | None]]:
    found: dict[str, tuple[str, int | None]] = {}
    for name in HEAD_FIELDS:
        if name in _PER_SEGMENT:
            found |= {f"{name}.{segment.name.lower()}": (name, int(segment)) for segment in Segment}
        else:
            found[name] = (name, None)
    return found


STATISTICS = _statistics()
"""Every statistic that is one number a head, such as `entropy` and `mass.image`, with its field and segment."""


def compact_row(heads: HeadRow) -> Row:
    """A copy of `heads` in the precision that traces have too: log-sum-exp and distances fp32, indices int32, the rest fp16."""
    return {name: np.asarray(getattr(heads, name)).astype(dtype) for name, dtype in DTYPES.items()}


def head_row(row: Row) -> HeadRow:
    """The row in the engine's terms again."""
    return HeadRow.of(row)


def head_map(row: Row, statistic: str) -> list[list[float | int | None]]:
    """One statistic of a row as `[layers][heads]` (KV heads for `retained`); nothing where a head has no such value.

    Raises:
        KeyError: there is no such statistic.
    """
    name, segment = STATISTICS[statistic]
    values = row[name] if segment is None else row[name][..., segment]
    if name in ("argmax_position", "image_argmax_position"):
        return [[int(value) if value >= 0 else None for value in layer] for layer in values]
    if name == "retained":
        return [[int(value) for value in layer] for layer in values]
    return [[round(float(value), 6) if math.isfinite(value) else None for value in layer] for layer in values]


def image_patches(row: Row, prompt: PromptInfo) -> list[list[tuple[int, int, int] | None]]:
    """Where each head looks: picture, row and column of the image token with most of its attention, `[layers][heads]`.

    Nothing for a head without an image entry, or where image tokens form no grid that the prompt tells of.
    """
    place_of = _places(prompt)
    return [[place_of.get(int(position)) for position in layer] for layer in row["image_argmax_position"]]


def _places(prompt: PromptInfo) -> dict[int, tuple[int, int, int]]:
    positions = np.flatnonzero(prompt.segments == Segment.IMAGE)
    if len(positions) != sum(rows * columns for rows, columns in prompt.image_grids):
        return {}
    places = [(image, r, c) for image, (rows, columns) in enumerate(prompt.image_grids) for r in range(rows) for c in range(columns)]
    return dict(zip(positions.tolist(), places, strict=True))


def to_safetensors(prompt: PromptInfo, steps: Sequence[StepTrace], rows: Sequence[Row], summary: str, feature_schema: str) -> bytes:
    """The whole answer as one file.

    Arrays: `heads.<statistic>` `[rows, layers, heads, ...]`, where row t predicted token t and read token t - 1;
    `tokens.id`, `tokens.logprob`, `tokens.entropy`, `tokens.margin` `[tokens]` (nats), `tokens.top_ids` and
    `tokens.top_logprobs` `[tokens, candidates]`; `prompt.segments`, `prompt.logical`, `prompt.retention`. The text of the
    prompt is not in it.

    Args:
        prompt: what was answered.
        steps: its tokens, control tokens included.
        rows: statistics, one row a query.
        summary: the answer's JSON, kept as metadata under `answer`.
        feature_schema: hash of names and order of the head statistics.
    """
    logits = [step.logits for step in steps if step.logits is not None]
    arrays: dict[str, NDArray[Any]] = {
        "tokens.id": np.array([step.token_id for step in steps], dtype=np.int32),
        "tokens.logprob": np.array([each.logprob for each in logits], dtype=np.float32),
        "tokens.entropy": np.array([each.entropy for each in logits], dtype=np.float32),
        "tokens.margin": np.array([each.margin for each in logits], dtype=np.float32),
        "tokens.top_ids": np.array([each.top_ids for each in logits], dtype=np.int32),
        "tokens.top_logprobs": np.array([each.top_logprobs for each in logits], dtype=np.float32),
        "prompt.segments": np.ascontiguousarray(prompt.segments),
        "prompt.logical": np.ascontiguousarray(prompt.logical),
        "prompt.retention": np.ascontiguousarray(prompt.retention),
    }
    if kept := list(rows):
        arrays |= {f"heads.{name}": np.stack([row[name] for row in kept]) for name in HEAD_FIELDS}
    return save(arrays, metadata={"format": FORMAT, "feature_schema": feature_schema, "answer": summary})
