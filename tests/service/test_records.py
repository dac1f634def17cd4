"""A remembered answer tells the same before and after it lets go of the engine's arrays, which it does behind its response."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from introspect.types import EffectiveBudget, HeadRow, LogitStats, PromptInfo, StepTrace
from introspect_probes.signals import AnswerSignal, TokenSignal
from introspect_service.compact import DTYPES, HEAD_FIELDS
from introspect_service.generation import Begun, Ended, Token
from introspect_service.records import RecordStore
from introspect_service.runner import Failed

NONE = np.empty(0)
PROMPT = PromptInfo("r", "q", NONE, NONE, None, (), EffectiveBudget("full", 4, 4, 4), NONE, NONE)
SIGNAL = AnswerSignal(None, None, None, (), calibrated=False, probe_set=None, in_domain=None, note=None, scores={})


def step(index, rng):
    """A step with a row of the engine's."""
    rows = {name: rng.integers(0, 9, (2, 2, 6) if name in ("mass", "retained") else (2, 2)).astype(DTYPES[name]) for name in HEAD_FIELDS}
    return StepTrace(PROMPT, index, 4 + index, 1, "a", False, LogitStats(-1.0, 0.5, 0.5, (1,), (-1.0,)), HeadRow.of(rows))


def texts(record):
    """What its rows say."""
    return [{name: array.tolist() for name, array in row.items()} for row in record.rows]


@pytest.mark.parametrize("is_complete", [True, False])
def test_the_engine_s_arrays_are_let_go_of_behind_the_answer_s_end(is_complete):
    async def run():
        store, rng = RecordStore(2, 1 << 20), np.random.default_rng(3)
        hear = store.listener("c", None)
        steps = [step(index, rng) for index in range(3)]
        hear(Begun(PROMPT))
        for each in steps:
            hear(Token(each, TokenSignal(each.index, None, None, None, is_final=True)))
        closing = replace(step(3, rng), logits=None, finish_reason="stop")
        hear(Ended(PROMPT, "aaa", "", 3, "stop", SIGNAL, 0.1, closing) if is_complete else Failed("cancelled", "the client left"))
        record = store.get("c")
        assert len(record.rows) == 3 + is_complete
        assert record.steps[0].heads is not None, "it is not settled while its response waits"
        before, held = texts(record), store.bytes
        for _ in range(1_000):
            if record.steps[0].heads is None:
                break
            await asyncio.sleep(0.01)
        assert record.steps == [replace(each, heads=None) for each in steps]
        assert not any(np.shares_memory(row["mass"], each.heads.mass) for row, each in zip(record.rows, steps, strict=False))
        assert (texts(record), store.bytes) == (before, held)

    asyncio.run(run())


def test_an_answer_that_is_dropped_before_holds_nothing_behind():
    async def run():
        store, rng = RecordStore(1, 1 << 20), np.random.default_rng(3)
        for name in ("first", "second"):
            hear = store.listener(name, None)
            hear(Begun(PROMPT))
            record = store.get(name)
            hear(Token(step(0, rng), TokenSignal(0, None, None, None, is_final=True)))
            hear(Failed("cancelled", "the client left"))
            if name == "first":
                first = record
        assert store.get("first") is None
        for _ in range(1_000):
            if record.steps[0].heads is None:
                break
            await asyncio.sleep(0.01)
        assert (first.steps, len(first.rows), store.bytes) == ([], 0, record.bytes)

    asyncio.run(run())
