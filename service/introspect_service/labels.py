"""Feedback as training data: answers with a label, in the format of `introspect record`.

Each labelled answer is written once as a trace (`part-*.parquet`, its truth unknown) and its label as
`labels-<completion id>.parquet` with the columns `id` (the trace's), `completion_id`, `correct` (1 right, 0 wrong),
`spans` (`start`, `end`, `label`: 0 true, 1 false) and `time` (RFC 3339, UTC); a later label replaces an earlier one.

A trace holds the question, the answer and the prompt's token ids, but no picture. A folder belongs to one server:
replicas need one each.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from introspect.loading import LoadedModel
from introspect.types import EffectiveBudget, StepTrace
from introspect_service.compact import head_row
from introspect_service.errors import ServiceError
from introspect_service.events import FeedbackData

if TYPE_CHECKING:
    from introspect_service.records import AnswerRecord

SPAN_LABELS = {"right": 0, "wrong": 1}


class LabelStore:
    """Writes labelled answers to a trace folder.

    Args:
        folder: made where it is not there.
        model: whose answers they are.

    Raises:
        ServiceError: what writing needs is not installed, or the folder cannot be used.
    """

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        try:
            from introspect_probes.traces import TraceWriter, manifest_of
        except ImportError as problem:
            raise ServiceError(f"traces: pip install 'introspect-mllm[probes]' to write them ({problem.name} is missing)") from None
        from introspect_probes.errors import ProbesError

        self.folder = folder
        self._lock = threading.Lock()
        try:
            self._writer = TraceWriter(folder, manifest_of(model))
            self._written = self._writer.recorded()
        except (ProbesError, OSError) as problem:
            raise ServiceError(f"traces: {problem}") from None

    def write(self, record: AnswerRecord, feedback: FeedbackData) -> None:
        """Write one label, and its answer where that is not there yet. Blocks: run it beside the event loop.

        Raises:
            OSError: the disk does not take it.
        """
        from introspect_probes.traces import UNKNOWN, Trace

        if record.ended is None:
            raise ValueError(f"{record.id} is not complete")
        name, prompt = trace_name(record.id, record.prompt.budget), record.prompt
        with self._lock:
            if name not in self._written:
                trace = Trace(
                    id=name, case_id=record.id, group=group_of(record), pool=None, kind="feedback", source="unknown", prior="unknown",
                    question=prompt.question, answer=record.ended.text, correct=UNKNOWN, prompt=prompt, steps=tuple(_steps(record)),
                    claims=(),
                )  # fmt: skip
                self._writer.write([trace])
                self._written.add(name)
            self._write_label(name, record.id, feedback)

    def _write_label(self, name: str, completion_id: str, feedback: FeedbackData) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        span = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.int8())])
        schema = pa.schema(
            [("id", pa.string()), ("completion_id", pa.string()), ("correct", pa.int8()), ("spans", pa.list_(span)), ("time", pa.string())]
        )
        row = {
            "id": name,
            "completion_id": completion_id,
            "correct": int(feedback.label == "right"),
            "spans": [{"start": s.start, "end": s.end, "label": SPAN_LABELS[s.label]} for s in feedback.spans],
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        path = self.folder / f"labels-{completion_id}.parquet"
        pq.write_table(pa.Table.from_pylist([row], schema=schema), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)


def trace_name(completion_id: str, budget: EffectiveBudget) -> str:
    """The id of an answer's trace: the completion's, and the budget as `introspect record` writes it."""
    amount = "" if budget.policy == "full" else f"-{budget.nominal:.0f}"
    return f"{completion_id}@{budget.policy}{amount}"


def group_of(record: AnswerRecord) -> str:
    """The same for all answers about the same pictures, so that no split puts them on both sides; else by question."""
    picture = record.prompt.image_embedding
    key = record.prompt.question.encode() if picture is None else picture.tobytes()
    return f"feedback-{hashlib.sha256(key).hexdigest()[:24]}"


def _steps(record: AnswerRecord) -> Iterator[StepTrace]:
    rows = [head_row(row) for row in record.rows]
    for step, row in zip(record.steps, rows, strict=False):
        yield replace(step, heads=row)
    if record.ended is not None:
        yield replace(record.ended.closing, heads=rows[len(record.steps)] if len(rows) > len(record.steps) else None)
