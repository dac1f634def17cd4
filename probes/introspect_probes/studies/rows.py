"""Rows of the study: for each answered case the logits, the hidden states and the statistics behind its word."""

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
from introspect.hidden import hidden_states
from introspect.loading import LoadedModel
from introspect.types import LogitStats, StepTrace
from introspect_probes.errors import ProbesError
from introspect_probes.features import Shape, head_feature_names, head_features
from introspect_probes.record import request_of
from introspect_probes.studies.arms import Arm
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.questions import HIDDEN, NONE

Array = NDArray[np.float32]
CANDIDATES = (*map(str, range(10)), NONE, HIDDEN)
"""The words that a question for a digit is answered with."""
TOP = 10
_CELLS = 16


@dataclass(frozen=True)
class Rows:
    """One row a case.

    Attributes:
        logits: `[cases, ·]`, the ten largest log-probabilities, entropy, margin, the log-probability of every
            candidate word, which of them was said, and which cell was asked about: what L reads.
        hidden: `[cases, layers * width]`, the last prompt position's hidden state behind every layer.
        statistics: `[cases, ·]`, the head statistics of the same query; columns are named by `columns`.
        correct: 1 where the answer is right.
        word: index into `CANDIDATES` of what was said, -1 for another word.
        group: the asked-for digit's image; where the cell was empty, the case.
        kept: mean entries per KV head over the prompt's length.
    """

    logits: Array
    hidden: Array
    statistics: Array
    correct: NDArray[np.int8]
    word: NDArray[np.int8]
    group: NDArray[np.str_]
    kept: Array

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.correct)

    def save(self, path: Path) -> None:
        """Write the rows, whole or not at all."""
        partial = path.with_suffix(".partial")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self.__dataclass_fields__ if name != "group"}
        save_file(arrays, partial, metadata={"group": json.dumps(self.group.tolist())})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """The rows that `save` wrote."""
        with safe_open(path, framework="np") as file:
            return cls(**{name: file.get_tensor(name) for name in file.keys()}, group=np.array(json.loads(file.metadata()["group"])))  # noqa: SIM118 - no dictionary

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows one after another."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__})


def answer_rows(engine: Engine, arm: Arm, cases: Sequence[Case], *, first: int = 0) -> Rows:
    """Answer cases under an arm's budget, one word each.

    Args:
        engine: what answers, greedily.
        arm: whose budget.
        cases: questions for a digit.
        first: number of the first case, from which random policies draw.

    Raises:
        ProbesError: the model has no word for an answer of this world.
    """
    ids = candidate_ids(engine.loaded)
    requests = [request_of(case, arm.budget(first + number), max_tokens=1) for number, case in enumerate(cases)]
    words: dict[str, StepTrace] = {}
    with hidden_states(engine.loaded) as states:
        for step in engine.generate(requests):
            if step.index == 0 and step.logits is not None:
                words[step.prompt.request_id] = step
        steps = [words[request.id] for request in requests]
        hidden = np.stack([states[step.prompt.request_id, step.position].ravel() for step in steps])
    said = [ids.index(step.token_id) if step.token_id in ids else -1 for step in steps]
    return Rows(
        logits=np.stack([_logits(step.logits, word, ids, case) for step, word, case in zip(steps, said, cases, strict=True)]),
        hidden=hidden.astype(np.float32),
        statistics=np.stack([_statistics(step) for step in steps]),
        correct=np.array([step.text.strip() == case.answers[0] for step, case in zip(steps, cases, strict=True)], dtype=np.int8),
        word=np.array(said, dtype=np.int8),
        group=np.array([case.group for case in cases]),
        kept=np.array([step.prompt.budget.effective / step.prompt.budget.prompt_tokens for step in steps], dtype=np.float32),
    )


def candidate_ids(loaded: LoadedModel) -> list[int]:
    """The token of each candidate word.

    Raises:
        ProbesError: a word has none of its own; the model does not know the world of digits.
    """
    ids = [loaded.tokenizer(word, add_special_tokens=False).input_ids for word in CANDIDATES]
    if any(len(found) != 1 for found in ids) or len({found[0] for found in ids}) < len(ids):
        raise ProbesError(f"{loaded.name}: expected one token for each of {', '.join(CANDIDATES)}; give a model of the world of digits")
    return [int(found[0]) for found in ids]


def columns(loaded: LoadedModel) -> dict[str, NDArray[np.int64]]:
    """Which columns of `Rows.statistics` each set of statistics has.

    `normalised`: all that are functions of a head's attention probabilities; `lse`: how much attention there was before
    they were normalised; `retention`: what survived of the prefill window's attention; `retained`: how many entries did.
    """
    names = [name for name in _names(loaded) if not name.startswith("reading.")]
    kinds = np.array([_kind(name) for name in names])
    return {kind: np.flatnonzero(kinds == kind) for kind in ("normalised", "lse", "retention", "retained")}


def _names(loaded: LoadedModel) -> tuple[str, ...]:
    return head_feature_names(Shape(loaded.num_layers, loaded.num_heads, loaded.num_kv_heads))


def _kind(name: str) -> str:
    if name.startswith(("retention", "retained")):
        return name.partition("_")[0]
    return "lse" if name.endswith(".lse") else "normalised"


def _statistics(step: StepTrace) -> Array:
    """Head statistics of the query behind a word, in the order of the feature names without the reading row's."""
    if step.heads is None:
        raise ProbesError(f"the step of {step.prompt.request_id} carries no head statistics; ask for signals")
    layers, heads = step.heads.lse.shape
    shape = Shape(layers, heads, step.heads.retained.shape[1])
    names = head_feature_names(shape)
    row: Array = head_features(step.heads, None, step.prompt, step.position)[[not name.startswith("reading.") for name in names]]
    return row


def _logits(stats: LogitStats | None, word: int, ids: Sequence[int], case: Case) -> Array:
    """The block that L reads; a candidate beyond the recorded ones gets the log-probability of the last recorded."""
    if stats is None:
        raise ProbesError(f"the step of {case.id} carries no logits")
    known = dict(zip(stats.top_ids, stats.top_logprobs, strict=True))
    floor = stats.top_logprobs[-1]
    top = np.array(stats.top_logprobs[:TOP])
    candidates = np.array([known.get(i, floor) for i in ids])
    said = np.arange(len(ids)) == word
    cell = np.arange(_CELLS) == case.evidence[0]
    parts = [np.clip(top, -30, 0), [stats.entropy, stats.margin], np.clip(candidates, -30, 0), said, cell]
    row: Array = np.concatenate(parts).astype(np.float32)
    return row
