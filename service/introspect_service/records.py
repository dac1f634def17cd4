"""What the server remembers of recent answers: their tokens, signals and head statistics, within bounds, oldest dropped first."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from introspect.types import PromptInfo, StepTrace
from introspect_probes.signals import TokenSignal
from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.head_rows import HeadRows
from introspect_service.publisher import AnswerPublisher
from introspect_service.runner import Failed

TOKEN_BYTES = 1_000
"""What a token takes in memory beside its head statistics, about: candidates, signals, objects."""

SETTLE_SECONDS = 0.05
"""How long an answer that ended keeps the engine's arrays: its response goes out first, for which the next request waits."""


class Bell:
    """Wakes everybody who waits for a change."""

    def __init__(self) -> None:
        self._change: asyncio.Event | None = None

    def ring(self) -> None:
        """Something changed."""
        if self._change is not None:
            self._change.set()
            self._change = None

    @property
    def next(self) -> asyncio.Event:
        """Set at the next change; take it before looking, so that none is missed."""
        if self._change is None:
            self._change = asyncio.Event()
        return self._change


class AnswerRecord:
    """One answer, while it is made and after.

    Attributes:
        id: the completion's id.
        publisher: publishes further events of this answer.
        prompt: what is answered.
        created: when it began, seconds since 1970.
        steps: its tokens, control tokens included; their head statistics are in `rows`.
        signals: their signals.
        rows: head statistics; row t predicted token t and read token t - 1.
        ended: how it ended, where it did.
        failed: why it will not be completed, where it will not.
        dropped: whether it was given up to keep the store within its bounds; it holds nothing any more.
        bell: rings at every change.
    """

    def __init__(self, completion_id: str, publisher: AnswerPublisher, prompt: PromptInfo) -> None:
        self.id, self.publisher, self.prompt = completion_id, publisher, prompt
        self.created = int(time.time())
        self.steps: list[StepTrace] = []
        self.signals: list[TokenSignal] = []
        self.rows = HeadRows()
        self.ended: Ended | None = None
        self.failed: Failed | None = None
        self.dropped = False
        self.bell = Bell()
        self._other_bytes = prompt.token_ids.nbytes + prompt.segments.nbytes + prompt.retention.nbytes

    @property
    def bytes(self) -> int:
        """Its memory, about."""
        return self._other_bytes + TOKEN_BYTES * len(self.steps) + self.rows.bytes

    @property
    def is_open(self) -> bool:
        """Whether more is to come."""
        return self.ended is None and self.failed is None and not self.dropped

    def add(self, token: Token) -> None:
        """Take the next token."""
        self.steps.append(token.step)
        self.signals.append(token.signal)
        if token.step.heads is not None:
            self.rows.add(token.step.heads)

    def end(self, ended: Ended) -> None:
        """Take the end, and the row that read the last token where there is one."""
        if ended.closing.heads is not None:
            self.rows.add(ended.closing.heads)
        self.ended = replace(ended, closing=replace(ended.closing, heads=None))
        self._settle_soon()

    def fail(self, failed: Failed) -> None:
        """Take the end of an answer that will not be completed."""
        self.failed = failed
        self._settle_soon()

    def drop(self) -> None:
        """Let go of everything."""
        self.dropped = True
        self.steps, self.signals, self.rows, self._other_bytes = [], [], HeadRows(), 0
        self.bell.ring()

    def _settle_soon(self) -> None:
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self.rows.settle()
        self.steps = [replace(step, heads=None) for step in self.steps]


class RecordStore:
    """Recent answers by id.

    Args:
        max_answers: how many are kept; 0 keeps none.
        max_bytes: memory of all together, about.
    """

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self.max_answers, self.max_bytes = max_answers, max_bytes
        self._records: OrderedDict[str, AnswerRecord] = OrderedDict()
        self.bytes = 0
        """Memory of all together, about."""

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._records)

    def get(self, completion_id: str) -> AnswerRecord | None:
        """The answer of that id, where it is still kept."""
        return self._records.get(completion_id)

    def listener(self, completion_id: str, publisher: AnswerPublisher) -> Callable[[Progress | Failed], None]:
        """What remembers one answer; call it on the event loop with everything that happens to it."""
        record: AnswerRecord | None = None

        def hear(what: Progress | Failed) -> None:
            nonlocal record
            before = record.bytes if record is not None else 0
            match what:
                case Begun(prompt):
                    record = AnswerRecord(completion_id, publisher, prompt)
                    self._records[completion_id] = record
                case Token() if record is not None and not record.dropped:
                    record.add(what)
                case Ended() if record is not None and not record.dropped:
                    record.end(what)
                case Failed() if record is not None:
                    record.fail(what)
                case _:
                    return
            if record is not None:
                record.bell.ring()
                self.bytes += record.bytes - before
            self._keep_within_bounds()

        return hear

    def _keep_within_bounds(self) -> None:
        while len(self._records) > self.max_answers or (self._records and self.bytes > self.max_bytes):
            _, oldest = self._records.popitem(last=False)
            self.bytes -= oldest.bytes
            oldest.drop()
