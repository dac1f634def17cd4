"""Traces as tables: one row a claim, one row an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from introspect_probes.baseline_rows import BaselineRows, baseline_rows
from introspect_probes.claim_probe import budget_features, is_reduced
from introspect_probes.errors import TraceError
from introspect_probes.features import TokenFeatures, kind_features, token_features
from introspect_probes.interventions import strategy_of
from introspect_probes.probe_set import answer_features
from introspect_probes.signals import STRATEGIES
from introspect_probes.token_store import TokenStore
from introspect_probes.traces import UNKNOWN, ClaimLabel, Trace
from introspect_probes.training_free import SCORES, Words

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Claims:
    """One row a claim whose truth is known.

    Attributes:
        heads: `[claims, head features]`.
        logits: `[claims, logit features]`.
        place: `[claims, place features]`.
        kind: `[claims, kinds]`, one-hot.
        budget: `[claims, 2]`.
        label: 1 where the claim is false.
        kinds: the kind's name.
        group: groups, never to be split.
        condition: policy and budget.
        answer: index of the answer's row.
        token: index of the deciding token.
        strategy: index into `STRATEGIES`; -1 where no single cause stood out; -2 where it was not measured.
        halves: the same from two disjoint halves of the donors, `[claims, 2]`.
    """

    heads: Array
    logits: Array
    place: Array
    kind: Array
    budget: Array
    label: NDArray[np.int8]
    kinds: NDArray[np.str_]
    group: NDArray[np.str_]
    condition: NDArray[np.str_]
    answer: NDArray[np.int64]
    token: NDArray[np.int64]
    strategy: NDArray[np.int8]
    halves: NDArray[np.int8]

    @property
    def reduced(self) -> NDArray[np.bool_]:
        """Whether each claim's cache was reduced."""
        return self.budget[:, 1] > 0

    def __len__(self) -> int:
        """Number of claims."""
        return len(self.label)

    def where(self, mask: NDArray[np.bool_]) -> Claims:
        """The claims of a mask."""
        return Claims(**{name: value[mask] for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class Answer:
    """One answer: what the confidence probe needs to know of it."""

    trace: Trace
    tokens: Sequence[TokenFeatures]
    scores: dict[str, float]
    kept: BaselineRows | None = None
    """What baselines read, where it was asked for."""

    @property
    def baselines(self) -> BaselineRows:
        """What baselines read.

        Raises:
            ValueError: the table was made without.
        """
        if self.kept is None:
            raise ValueError(f"the answer {self.trace.id} was read without what baselines need; read it with `baselines=True`")
        return self.kept


@dataclass(frozen=True)
class Table:
    """Answers with known truth, and their claims."""

    answers: tuple[Answer, ...]
    claims: Claims
    unlabelled: tuple[str, ...] = ()
    """Ids of the answers that were left out, because nobody said whether they are right."""

    @property
    def groups(self) -> NDArray[np.str_]:
        """Group of every answer."""
        return np.array([a.trace.group for a in self.answers])

    @property
    def correct(self) -> NDArray[np.int8]:
        """1 where the answer is right."""
        return np.array([a.trace.correct for a in self.answers], dtype=np.int8)

    @property
    def reduced(self) -> NDArray[np.bool_]:
        """Whether each answer's cache was reduced."""
        return np.array([is_reduced(a.trace.prompt) for a in self.answers])

    @property
    def conditions(self) -> NDArray[np.str_]:
        """Condition of every answer."""
        return np.array([a.trace.condition for a in self.answers])

    @property
    def has_hidden(self) -> NDArray[np.bool_]:
        """Whether hidden states were kept, of every answer."""
        return np.array([a.baselines.hidden is not None for a in self.answers], dtype=np.bool_)

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Share of sampled answers that equal each answer; NaN where none were drawn."""
        return np.array([np.nan if a.trace.agreement is None else a.trace.agreement for a in self.answers], dtype=np.float64)

    def where(self, mask: NDArray[np.bool_]) -> Table:
        """The answers of a mask, and their claims."""
        claims = self.claims.where(mask[self.claims.answer])
        claims = replace(claims, answer=(np.cumsum(mask) - 1)[claims.answer])
        return Table(tuple(a for a, kept in zip(self.answers, mask, strict=True) if kept), claims)

    def confidence_features(self, risks: NDArray[np.float64], cut: Callable[[int], int] | None = None) -> Array:
        """What the confidence probe reads of every answer, `[answers, features]`.

        Args:
            risks: risk of every claim, in the order of `claims`.
            cut: how many of an answer's tokens to read; all of them by default.
        """
        by_answer: dict[int, list[int]] = {}
        for row, answer in enumerate(self.claims.answer):
            by_answer.setdefault(int(answer), []).append(row)
        rows = []
        for number, answer in enumerate(self.answers):
            count = len(answer.tokens) if cut is None else cut(len(answer.tokens))
            seen = [r for r in by_answer.get(number, []) if self.claims.token[r] < count]
            rows.append(
                answer_features(
                    list(answer.tokens[:count]),
                    [float(risks[r]) for r in seen],
                    [str(self.claims.kinds[r]) for r in seen],
                    answer.trace.prompt,
                )
            )
        return np.stack(rows)


def load_table(traces: Iterable[Trace], total: int | None = None) -> Table:
    """Read traces into a table; answers of unknown truth or without a word are left out.

    Raises:
        TraceError: a trace holds a statistic that is not finite, or two have one id; the message names it.
    """
    builder = TableBuilder(baselines=True)
    for trace in tqdm(traces, total=total, desc="reading traces", unit="answer", leave=False):
        builder.add(trace)
    return builder.table()


class TableBuilder:
    """A table made trace by trace.

    Args:
        store: with one, only what a fit reads stays in memory: tokens' features go there, and the answers' traces are
            kept without steps, hidden states and pictures. What is left is a row of features a claim, and the prompts.
        baselines: also keep what baselines read: words, their training-free scores, and hidden states of claims' words (in the store).
    """

    def __init__(self, store: TokenStore | None = None, *, baselines: bool = False) -> None:
        self._store = store
        self._baselines = baselines
        self._answers: list[Answer] = []
        self._rows: list[dict[str, object]] = []
        self._unlabelled: list[str] = []
        self._seen: set[str] = set()

    def add(self, trace: Trace) -> None:
        """Take one trace.

        Raises:
            TraceError: see `load_table`.
        """
        if trace.id in self._seen:
            raise TraceError(f"the trace {trace.id} occurs twice; give each folder once, and cases of one id to one folder")
        self._seen.add(trace.id)
        if trace.correct == UNKNOWN:
            self._unlabelled.append(trace.id)
            return
        tokens = _tokens(trace)
        if not tokens:
            return
        words = Words(trace.steps)
        scores = {name: score(words) for name, score in SCORES.items()}
        claims = [c for c in trace.claims if c.label != UNKNOWN and c.token < len(tokens)]
        self._rows += _claim_rows(trace, claims, tokens, len(self._answers))
        kept = baseline_rows(trace, [c.token for c in claims], len(tokens), self._store) if self._baselines else None
        if self._store is None:
            self._answers.append(Answer(trace, tuple(tokens), scores, kept))
        else:
            light = replace(trace, steps=(), hidden=None, picture=None)
            self._answers.append(Answer(light, self._store.keep(tokens), scores, kept))

    def table(self) -> Table:
        """What was taken so far."""
        return Table(tuple(self._answers), _stack(self._rows), tuple(self._unlabelled))


def _tokens(trace: Trace) -> list[TokenFeatures]:
    """Final features of every word of the answer; control tokens aside."""
    steps = trace.steps
    spoken = [i for i, s in enumerate(steps) if s.logits is not None and not s.is_special]
    features = [token_features(steps, i, steps[i + 1] if i + 1 < len(steps) else None) for i in spoken]
    for index, found in zip(spoken, features, strict=True):
        if found is not None and not (np.isfinite(found.heads).all() and np.isfinite(found.logits).all()):
            raise TraceError(
                f"the trace {trace.id} holds a statistic that is not finite at token {index}; record it again, or leave it out"
            )
    return [f for f in features if f is not None]


def _claim_rows(trace: Trace, claims: Sequence[ClaimLabel], tokens: Sequence[TokenFeatures], answer: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for claim in claims:
        features = tokens[claim.token]
        rows.append(
            {
                "heads": features.heads,
                "logits": features.logits,
                "place": features.place,
                "kind": kind_features(claim.kind),
                "budget": budget_features(trace.prompt),
                "label": claim.label,
                "kinds": claim.kind,
                "group": trace.group,
                "condition": trace.condition,
                "answer": answer,
                "token": claim.token,
                "strategy": -2 if claim.shifts is None else _strategy_index(claim.shifts, trace.source),
                "halves": (-2, -2) if claim.halves is None else tuple(_strategy_index(h, trace.source) for h in claim.halves),
            }
        )
    return rows


def _strategy_index(shifts: dict[str, float], source: str) -> int:
    label = strategy_of(shifts, source)
    return -1 if label is None else STRATEGIES.index(label)


def empty_claims() -> Claims:
    """A table without a claim."""
    return _stack([])


def _stack(rows: list[dict[str, object]]) -> Claims:
    kinds = {"label": np.int8, "strategy": np.int8, "halves": np.int8, "answer": np.int64, "token": np.int64}
    names = Claims.__dataclass_fields__
    if not rows:
        matrices = ("heads", "logits", "place", "kind", "budget", "halves")
        return Claims(
            **{n: np.zeros((0, 2) if n in matrices else 0, dtype=kinds.get(n, np.float32 if n in matrices else np.str_)) for n in names}
        )
    return Claims(**{name: np.array([row[name] for row in rows], dtype=kinds.get(name)) for name in names})
