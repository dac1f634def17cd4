"""Rows of the study of learning state: what one checkpoint says to each item, how sure it is, and what its heads did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from introspect.engine import Engine
from introspect.types import Budget, LogitStats, StepTrace
from introspect_probes.errors import ProbesError
from introspect_probes.features import LAYER_STATISTICS, Shape, head_feature_names, head_features
from introspect_probes.record import request_of
from introspect_probes.worlds.cases import Case

Array = NDArray[np.float32]
TOP = 5
FEW = 10
"""Strata with fewer rows than this are not standardised; their statistics count as typical."""


@dataclass(frozen=True)
class Rows:
    """One row an item, of one checkpoint.

    Attributes:
        logits: `[items, TOP + 2]`, the largest log-probabilities, entropy, margin (nats).
        truth: `[items]`, log-probability of the right word; of the last recorded one where it is not among the recorded.
        statistics: `[items, ·]`, the same query's head statistics: mean, deviation, largest and smallest over a layer's
            heads, since the heads of two training runs have no names in common.
        correct: 1 where the answer is right.
        kind: the question's type.
        group: items that share evidence.
    """

    logits: Array
    truth: Array
    statistics: Array
    correct: NDArray[np.int8]
    kind: NDArray[np.str_]
    group: NDArray[np.str_]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.correct)

    def save(self, path: Path) -> None:
        """Write the rows, whole or not at all."""
        partial = path.with_suffix(".partial")
        names = {"kind": json.dumps(self.kind.tolist()), "group": json.dumps(self.group.tolist())}
        arrays = {n: np.ascontiguousarray(getattr(self, n)) for n in self.__dataclass_fields__ if n not in names}
        save_file(arrays, partial, metadata=names)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """The rows that `save` wrote."""
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
            return cls(**arrays, **{name: np.array(json.loads(text)) for name, text in file.metadata().items()})


def ask(engine: Engine, cases: Sequence[Case]) -> Rows:
    """Answer cases with the whole cache, one word each.

    Raises:
        ProbesError: an answer is more than one token of this model.
    """
    words = [_word(engine, case) for case in cases]
    requests = [request_of(case, Budget(), max_tokens=1) for case in cases]
    found: dict[str, StepTrace] = {step.prompt.request_id: step for step in engine.generate(requests) if step.logits is not None}
    steps = [found[request.id] for request in requests]
    pairs = [(_logits(step), word) for step, word in zip(steps, words, strict=True)]
    return Rows(
        logits=np.array([[*s.top_logprobs[:TOP], s.entropy, s.margin] for s, _ in pairs], dtype=np.float32),
        truth=np.array([dict(zip(s.top_ids, s.top_logprobs, strict=True)).get(w, s.top_logprobs[-1]) for s, w in pairs], dtype=np.float32),
        statistics=np.stack([_over_heads(step) for step in steps]),
        correct=np.array([step.token_id == word for step, word in zip(steps, words, strict=True)], dtype=np.int8),
        kind=np.array([case.kind for case in cases]),
        group=np.array([case.group for case in cases]),
    )


def standardised_within(matrix: NDArray[np.floating], strata: NDArray[np.str_]) -> NDArray[np.float64]:
    """Columns less the mean and over the deviation of their row's stratum, clipped at 8; 0 in small strata and where nothing varies."""
    result = np.zeros(matrix.shape, dtype=np.float64)
    for name in np.unique(strata):
        rows = np.flatnonzero(strata == name)
        if len(rows) >= FEW:
            part = matrix[rows].astype(np.float64)
            scale = part.std(0)
            result[rows] = np.where(scale > 1e-8, np.clip((part - part.mean(0)) / np.maximum(scale, 1e-8), -8, 8), 0.0)
    return result


def _word(engine: Engine, case: Case) -> int:
    found = engine.loaded.tokenizer(case.answers[0], add_special_tokens=False).input_ids
    if len(found) != 1:
        raise ProbesError(f"case {case.id}: expected an answer of one token, got {len(found)} for {case.answers[0]!r}")
    return int(found[0])


def _logits(step: StepTrace) -> LogitStats:
    if step.logits is None:
        raise ProbesError(f"the step of {step.prompt.request_id} carries no logits; ask for signals")
    return step.logits


def _over_heads(step: StepTrace) -> Array:
    """Statistics of the query behind a word, over the heads of each layer, and those that are of layers anyway."""
    if step.heads is None:
        raise ProbesError(f"the step of {step.prompt.request_id} carries no head statistics; ask for signals")
    layers, heads = step.heads.lse.shape
    names = head_feature_names(Shape(layers, heads, step.heads.retained.shape[1]))
    producing = sum(name.startswith("producing.") for name in names)
    row = head_features(step.heads, None, step.prompt, step.position)[:producing]
    of_heads, of_layers = row[: -len(LAYER_STATISTICS) * layers], row[-len(LAYER_STATISTICS) * layers :]
    per_head = of_heads.reshape(-1, layers, heads)
    parts = [per_head.mean(-1), per_head.std(-1), per_head.max(-1), per_head.min(-1)]
    return np.concatenate([*(part.ravel() for part in parts), of_layers]).astype(np.float32)
