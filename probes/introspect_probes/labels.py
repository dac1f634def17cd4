"""Labels that came after the answers: `labels-*.parquet`, joined with traces by id.

The service writes one for each answer that somebody judged; anyone may write more
with the columns `id` (the trace's), `correct` (1 right, 0 wrong) and, optionally,
`spans` (`start`, `end`, `label`: 0 true, 1 false) and `time` (RFC 3339; the latest wins).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from introspect_probes.errors import TraceError
from introspect_probes.grammar import find_claims, find_words, question_form
from introspect_probes.traces import FALSE, TRUE, UNKNOWN, ClaimLabel, Trace, Wanted, read_traces
from introspect_probes.worlds.claims import Judgement, claims_in_answer_tokens


@dataclass(frozen=True)
class Label:
    """What somebody said of one answer; `spans` are `(start, end, label)` with 0 true and 1 false."""

    correct: int
    spans: tuple[tuple[int, int, int], ...] = ()


def read_labels(folder: Path) -> dict[str, Label]:
    """The labels of a trace folder by the trace's id; the latest of each.

    Raises:
        TraceError: a file that cannot be read, or a row that makes no sense, is named with the remedy.
    """
    found: dict[str, tuple[str, Label]] = {}
    for path in sorted(folder.glob("labels-*.parquet")):
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as problem:
            raise TraceError(f"{path} cannot be read: {problem}; remove it or write it again") from problem
        for number, row in enumerate(rows):
            name, time, label = _checked(row, f"{path}, row {number}")
            if name not in found or time >= found[name][0]:
                found[name] = (time, label)
    return {name: label for name, (_, label) in found.items()}


def read_labelled(folder: Path, *, with_heads: bool = True, wanted: Wanted | None = None) -> Iterator[Trace]:
    """The traces of a folder, or those `wanted`, with the labels beside them; those without one are as they were recorded.

    Raises:
        TraceError: see `read_labels` and `traces.read_traces`; or, where all are wanted, a label is of a trace that is not there.
    """
    labels = read_labels(folder)
    met = set()
    for trace in read_traces(folder, with_heads=with_heads, wanted=wanted):
        label = labels.get(trace.id)
        if label is not None:
            met.add(trace.id)
        yield trace if label is None else _joined(trace, label)
    if wanted is None and (lost := sorted(labels.keys() - met)):
        raise TraceError(f"{folder} holds a label for {lost[0]!r} and no such trace; remove the label, or bring back the trace's part")


def _checked(row: Mapping[str, Any], where: str) -> tuple[str, str, Label]:
    if not isinstance(row.get("id"), str):
        raise TraceError(f"{where}: expected the trace's id in the column `id`, got {row.get('id')!r}")
    if row.get("correct") not in (0, 1):
        raise TraceError(f"{where}: expected 0 or 1 in the column `correct`, got {row.get('correct')!r}; leave out answers not judged")
    spans = []
    for span in row.get("spans") or ():
        if not 0 <= span["start"] < span["end"] or span["label"] not in (TRUE, FALSE):
            raise TraceError(f"{where}: expected a span with 0 <= start < end and label 0 (true) or 1 (false), got {span}")
        spans.append((int(span["start"]), int(span["end"]), int(span["label"])))
    return row["id"], str(row.get("time") or ""), Label(int(row["correct"]), tuple(spans))


def _joined(trace: Trace, label: Label) -> Trace:
    """Claims are the world's where its grammar knows the question, else the words that somebody marked."""
    form = question_form(trace.question)
    claims = find_claims(form, trace.answer) if form is not None else find_words(trace.answer) if label.spans else ()
    located = claims_in_answer_tokens(Judgement(bool(label.correct), claims), _token_spans(trace))
    made = [
        ClaimLabel(token, claim.start, claim.end, claim.kind, _truth(claim.start, claim.end, label, len(claims) if form else 0))
        for token, claim in located
    ]
    return replace(trace, correct=label.correct, claims=tuple(c for c in made if c.label != UNKNOWN))


def _truth(start: int, end: int, label: Label, claims: int) -> int:
    """A claim's label: of the span that meets it, false if any says so; else what the answer's own label implies of it."""
    marked = [truth for begin, stop, truth in label.spans if start < stop and begin < end]
    if marked:
        return max(marked)
    if not claims:
        return UNKNOWN
    if label.correct:
        return TRUE
    return FALSE if claims == 1 else UNKNOWN


def _token_spans(trace: Trace) -> list[tuple[int, int]]:
    spans, place = [], 0
    for step in trace.steps:
        spans.append((place, place + len(step.text)))
        place += len(step.text)
    return spans
