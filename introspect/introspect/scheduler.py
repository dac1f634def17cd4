"""Continuous batching: requests join and leave between decode steps."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray

from introspect.answer import Answer
from introspect.continuing import common_prefix, take_up
from introspect.decoding import DecodeStep, Step, StepShape
from introspect.forward import Forward
from introspect.influence import influence, last_sums
from introspect.lanes import wants
from introspect.limits import Limits, Need, bytes_of, check_fits, need_of
from introspect.loading import LoadedModel
from introspect.pool import KVBytes, Runs, SlotPool
from introspect.prefill import prefill_shape, same_prompt
from introspect.prompt import EncodedPrompt
from introspect.reading import Reading
from introspect.rebudgeting import rebudget_runs
from introspect.types import PromptInfo, StepTrace

logger = logging.getLogger(__name__)

Event = tuple[Answer, StepTrace | Exception]
"""What became of an answer: a step of it (the last has a `finish_reason`), or the error that ended it."""


class Scheduler:
    """Decides what is computed next; not safe to use from several threads at once.

    Each `step` reads a piece of a waiting prompt and decodes one token of everything that runs. Requests
    are taken in the order they came; others of the first one's shape may join it.

    Args:
        loaded: the model.
        limits: how much may run.
        impl: which `decode_attention` implementation; see there.
        forward: the model's way from tokens to log-probabilities; one of its own without.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits, impl: str | None = None, forward: Forward | None = None) -> None:
        self._loaded, self._limits, self._impl = loaded, limits, impl
        self._forward = forward or Forward(loaded)
        self._captures = limits.capture and loaded.device.type == "cuda"
        self._pool = SlotPool(loaded.num_layers, loaded.num_kv_heads, loaded.device, shrinks=not self._captures)
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._needs: dict[Answer, Need] = {}
        self._reading: Reading | None = None
        self._step: DecodeStep | None = None
        self._steps: dict[StepShape, DecodeStep] = {}
        self._parking: Runs | None = None
        self._version = -1

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._reading)

    @property
    def running(self) -> int:
        """Requests that are prefilled or decoded."""
        return len(self._running) + (len(self._reading.answers) if self._reading else 0)

    @property
    def decoding(self) -> int:
        """Requests that are decoded."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def kv_bytes(self) -> KVBytes:
        """Memory of keys and values now."""
        self._write_back()
        return self._pool.bytes()

    def submit(self, prompt: EncodedPrompt, forced: Sequence[int] | None = None) -> Answer:
        """Put a request in line.

        Raises:
            RequestError: it could never run.
        """
        need = need_of(self._loaded, prompt, self._limits)
        check_fits(self._loaded, need, self._limits)
        answer = Answer(prompt, forced)
        self._needs[answer] = need
        self._waiting.append(answer)
        return answer

    def continue_with(self, prompt: EncodedPrompt, last: Answer | None) -> tuple[Answer, int]:
        """Answer the next turn of a conversation, on the cache of its last turn where that can be.

        Args:
            prompt: the whole conversation.
            last: the last turn's answer, from this method and ended; its cache is taken up or freed.

        Returns:
            The answer, and how many tokens of the prompt its cache holds already.

        Raises:
            RequestError: it could never run.
        """
        check_fits(self._loaded, need_of(self._loaded, prompt, self._limits), self._limits)
        common = common_prefix(self._loaded, self._pool, last, prompt) if last is not None else 0
        if last is None or last.runs is None or common == 0:
            if last is not None:
                self.release(last)
            answer = self.submit(prompt)
            answer.keeps = True
            return answer, 0
        answer, runs, last.runs = Answer(prompt), last.runs, None
        answer.keeps = True
        self._needs[answer] = take_up(self._loaded, self._pool, self._limits, answer, last, runs, common)
        self._write_back()
        self._running.append(answer)
        return answer, common

    def release(self, answer: Answer) -> None:
        """Free what an answer has kept."""
        if answer.runs is not None:
            self._pool.release(answer.runs)
            answer.runs = None

    def cancel(self, answer: Answer) -> None:
        """End an answer and free its memory at once; nothing if it has ended."""
        answer.keeps = False
        if self._reading is not None and answer in self._reading.answers:
            others = [other for other in self._reading.answers if other is not answer]
            self._drop_reading()
            self._waiting.extendleft(reversed(others))
        elif answer in self._waiting:
            self._waiting.remove(answer)
        elif answer in self._running:
            self._leave([answer])
        self._needs.pop(answer, None)

    def close(self) -> None:
        """End everything."""
        for answer in list(self._needs):
            self.cancel(answer)

    def step(self) -> list[Event]:
        """Do a bounded piece of work."""
        events: list[Event] = []
        if self._reading is None:
            self._begin_reading()
        if self._reading is not None:
            events += self._read(self._reading)
        if self._running:
            events += self._decode()
        return events

    def _begin_reading(self) -> None:
        """Begin to prefill the first in line, with others of its shape, if there is room for it."""
        free = self._limits.max_batch - len(self._running)
        if not self._waiting or (self._running and free < min(self._limits.refill, len(self._waiting))):
            return
        group, same, shape, tokens = list[Answer](), list[Answer](), prefill_shape(self._waiting[0].prompt), 0
        for answer in list(self._waiting):
            tokens += answer.prompt.length
            if group and self._running and tokens > self._limits.prefill_chunk:
                break
            taken = [*group, *same]
            if len(taken) < free and prefill_shape(answer.prompt) == shape and self._fits([*taken, answer]):
                is_same = any(same_prompt(answer.prompt, other.prompt) for other in group)
                (same if is_same else group).append(answer)  # of what is the same one is read, and the others join when it is
            elif not group:
                return
        for answer in group:
            self._waiting.remove(answer)
        self._reading = Reading(self._loaded, group, [self._needs[a] for a in group], self._pool, self._limits.prefill_chunk)

    def _fits(self, group: Iterable[Answer]) -> bool:
        if self._limits.kv_bytes is None:
            return True
        needs = [self._needs[answer] for answer in (*self._running, *group)]
        if self._captures:
            needs.append(Need(1, False, self._loaded.num_layers * self._loaded.num_kv_heads, False))  # what is parked
        return bytes_of(self._loaded, needs) <= self._limits.kv_bytes

    def _read(self, reading: Reading) -> list[Event]:
        """A piece of the prefill, or all of it where nobody else has to wait."""
        allowance = self._limits.prefill_chunk * self._loaded.num_layers if self._running else None
        try:
            if not reading.advance(allowance):
                return []
        except Exception as problem:  # noqa: BLE001 - it ends this request and no other
            return self._fail_reading(reading, problem)
        self._reading = None
        self._write_back()
        for answer, sequence in zip(reading.answers, reading.work.sequences, strict=True):
            answer.info, answer.runs, answer.room = sequence.info, sequence.runs, self._needs[answer].slack
        self._running += reading.answers
        self._share(reading.answers)
        return []

    def _share(self, readers: Sequence[Answer]) -> None:
        """Who waits with a prompt that was just read joins with a copy of what was kept of it."""
        for answer in list(self._waiting):
            if len(self._running) >= self._limits.max_batch:
                return
            reader = next((one for one in readers if same_prompt(one.prompt, answer.prompt)), None)
            if reader is None or not self._fits([answer]):
                continue
            need, runs, info = self._needs[answer], cast("Runs", reader.runs), cast("PromptInfo", reader.info)
            try:
                answer.runs = self._pool.copy(runs, need.slack, tracked=need.is_tracked)
            except Exception:
                logger.warning("request %s could not share a prefill", answer.prompt.request.id, exc_info=True)
                return
            answer.info, answer.room = replace(info, request_id=answer.prompt.request.id), need.slack
            self._waiting.remove(answer)
            self._running.append(answer)

    def _fail_reading(self, reading: Reading, problem: Exception) -> list[Event]:
        """A prompt could not be read; of several that were read together each has another try alone."""
        self._drop_reading()
        if len(reading.answers) == 1:
            logger.error("request %s could not be prefilled", reading.answers[0].prompt.request.id, exc_info=problem)
            self._needs.pop(reading.answers[0])
            return [(reading.answers[0], problem)]
        events: list[Event] = []
        for answer in reading.answers:
            self._reading = Reading(self._loaded, [answer], [self._needs[answer]], self._pool, self._limits.prefill_chunk)
            while self._reading is not None:
                events += self._read(self._reading)
        return events

    def _drop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _decode(self) -> list[Event]:
        """One token of everything that runs."""
        self._make_room()
        step = self._current_step()
        answers = step.answers
        try:
            made = step.run()
        except Exception as problem:  # noqa: BLE001 - whose fault it is must be found out
            return self._decode_apart(answers, problem)
        return self._advance(answers, made)

    def _make_room(self) -> None:
        """Re-budget the runs that are full."""
        for answer in [answer for answer in self._running if answer.room == 0 and answer.runs is not None]:
            self._write_back()
            answer.room = rebudget_runs(self._pool, cast("Runs", answer.runs), self._needs[answer].slack)

    def _decode_apart(self, answers: list[Answer], problem: Exception) -> list[Event]:
        """A step failed: each answer takes it alone, and those that fail again are ended."""
        self._write_back()
        events: list[Event] = []
        for answer in answers:
            step = DecodeStep(self._loaded, self._forward, self._pool, ((wants(answer), 1),), self._impl)
            step.fill([[answer]])
            try:
                if len(answers) == 1:
                    raise problem
                made = step.run()
            except Exception as own:
                logger.exception("request %s failed", answer.prompt.request.id)
                answer.keeps = False
                self._leave([answer])
                events.append((answer, own))
            else:
                step.write_back()
                events += self._advance([answer], made)
        return events

    def _advance(self, answers: list[Answer], made: Step) -> list[Event]:
        """Give each answer its token and say what became of it."""
        events: list[Event] = []
        ended: list[Answer] = []
        for row, answer in enumerate(answers):
            answer.room -= 1
            if answer.is_feeding:
                answer.at += 1
                if answer.at == answer.prompt.length - 1:  # from here on it may want statistics
                    self._write_back()
                continue
            if (columns := made.received[row]) is not None:
                answer.columns.append(columns)
            try:
                steps, over = answer.advance(self._loaded, made.tokens[row], made.logits[row], made.heads[row])
                if over and answer.columns:
                    self._write_back()
                    steps[-1] = replace(steps[-1], influence=self._influence(answer))
            except Exception as problem:
                logger.exception("request %s failed", answer.prompt.request.id)
                events.append((answer, problem))
                answer.keeps = False
                ended.append(answer)
                continue
            if over:
                ended.append(answer)
            events += [(answer, step) for step in steps]
        if ended:
            self._leave(ended)
        return events

    def _influence(self, answer: Answer) -> NDArray[np.float32]:
        """What the tokens of an answer received from later ones; its runs know their lengths."""
        runs, last = cast("Runs", answer.runs), answer.prompt.length + len(answer.columns) - 2
        rest = last_sums([self._pool.of(layer, [runs], tracked=True) for layer in range(self._loaded.num_layers)], last)
        return influence(answer.columns, rest, len(answer.tokens), self._loaded.num_heads // self._loaded.num_kv_heads)

    def _leave(self, answers: Sequence[Answer]) -> None:
        """Answers run no more; their memory is free."""
        self._write_back()
        for answer in answers:
            self._running.remove(answer)
            self._needs.pop(answer, None)
            if not answer.keeps:
                self.release(answer)

    def _current_step(self) -> DecodeStep:
        """The step of what runs, filled anew where somebody came, left or was moved."""
        if self._captures and self._parking is None:
            self._parking = self._pool.park()
        if self._step is None or self._version != self._pool.version:
            self._write_back()
            if self._version != self._pool.version:  # graphs know the pool's tensors by their addresses
                self._steps.clear()
            self._running.sort(key=wants)
            self._step = self._step_of([list(group) for _, group in groupby(self._running, wants)])
            self._version = self._pool.version
        return self._step

    def _step_of(self, groups: list[list[Answer]]) -> DecodeStep:
        """A step for these groups; one that is captured is kept for the next batch of its shape, with idle rows where that is smaller."""
        shape = tuple((wants(group[0]), self._rows(len(group))) for group in groups)
        step = self._steps.get(shape)
        if step is None:
            step = DecodeStep(self._loaded, self._forward, self._pool, shape, self._impl, parking=self._parking, captures=self._captures)
        if self._captures:
            self._steps[shape] = step
        step.fill(groups)
        return step

    def _rows(self, answers: int) -> int:
        """Rows of a lane: captured ones come in powers of two."""
        return min(1 << (answers - 1).bit_length(), self._limits.max_batch) if self._captures else answers

    def _write_back(self) -> None:
        """Runs take their lengths back from the step, which is given up."""
        if self._step is not None:
            self._step.write_back()
            self._step = None
