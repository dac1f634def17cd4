"""One decode step of everything that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from introspect.answer import Answer
from introspect.attention import DecodePass, active
from introspect.loading import LoadedModel
from introspect.pool import SlotPool
from introspect.sampling import Choosing, choose, logit_stats, measure
from introspect.types import HeadRow, LogitStats
from introspect_kernels import Arena
from introspect_kernels.decode.packing import INDICES, REALS, PackedStats

_NO_WINDOW = 2**31 - 1


class Lane:
    """Answers of a step that want the same of it: statistics or not, received attention or not.

    Args:
        pool: where their entries lie.
        answers: they.
        rows: which rows of the step's batch they are.
        windows: per layer how many entries a query sees, or `None` for all.
    """

    def __init__(self, pool: SlotPool, answers: Sequence[Answer], rows: slice, windows: Sequence[int | None]) -> None:
        self.rows, self.answers = rows, list(answers)
        runs = [answer.runs for answer in answers if answer.runs is not None]
        self.wants_stats, self._tracked = wants(answers[0])
        self._pool, self._runs = pool, runs
        self._start, self._length, self._capacity = (
            torch.stack([getattr(one, name) for one in runs], 1) for name in ("start", "length", "capacity")
        )
        self._first = self._start
        self._windows: torch.Tensor | None = None
        if any(window is not None for window in windows):
            sizes = [_NO_WINDOW if window is None else window for window in windows]
            self._windows = torch.tensor(sizes, dtype=torch.int32, device=self._start.device)[:, None, None]

    def begin(self, position: torch.Tensor, segment: torch.Tensor) -> None:
        """Settle for all layers at once where the step's entries go, `position` and `segment` `[batch]`."""
        heads = self._start.shape[2]
        self._origin = position[self.rows].repeat_interleave(heads), segment[self.rows].repeat_interleave(heads)
        self._slots = (self._start + self._length).flatten(1).long().unbind(0)
        start, length, capacity = self._start, self._length + 1, self._capacity
        if self._windows is not None:  # entries that a layer with a window does not see any more are let go
            over = (length - self._windows).clamp(min=0)
            start, length, capacity = start + over, length - over, capacity - over
        self._after = start, length, capacity
        self._layers = list(zip(start.unbind(0), length.unbind(0), capacity.unbind(0), strict=True))

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Arena:
        """Store the step's own entry of each answer, `[batch, kv_heads, head_dim]`; what a layer's queries see, that entry included.

        Nobody asks whether there is room: the scheduler knows, and the host reads no length.
        """
        arena, slots = self._pool.arena(layer, *self._layers[layer], tracked=self._tracked), self._slots[layer]
        arena.k.index_copy_(0, slots, k.flatten(0, 1))
        arena.v.index_copy_(0, slots, v.flatten(0, 1))
        arena.position.index_copy_(0, slots, self._origin[0])
        arena.segment.index_copy_(0, slots, self._origin[1])
        if arena.received is not None and arena.queries is not None:
            arena.received.index_fill_(0, slots, 0)
            arena.queries.index_fill_(0, slots, 0)
        return arena

    def commit(self) -> None:
        """The step has come to its end: its entries are there. A step that failed has added nothing."""
        self._start, self._length, self._capacity = self._after

    def write_back(self) -> None:
        """Tell each answer's runs how long they have become; they may have moved since the lane was made."""
        for row, one in enumerate(self._runs):
            one.length = self._length[:, row].clone()
            if self._windows is not None:
                slid = self._start[:, row] - self._first[:, row]
                one.start, one.capacity = one.start + slid, one.capacity - slid
        self._first = self._start


def wants(answer: Answer) -> tuple[bool, bool]:
    """Whether an answer's next step is to give head statistics, and whether it keeps received attention."""
    return answer.prompt.request.signals and not answer.is_feeding, answer.runs is not None and answer.runs.tracked


@dataclass(frozen=True)
class Step:
    """What a decode step gave each answer: a token, the statistics of its distribution, and the heads' where it wants them."""

    tokens: list[int]
    logits: list[LogitStats]
    heads: list[HeadRow | None]


@torch.inference_mode()
def decode_step(loaded: LoadedModel, lanes: Sequence[Lane], impl: str | None = None) -> Step:
    """One token of every answer. The device's results are read once, when all of it is done."""
    answers = [answer for lane in lanes for answer in lane.answers]
    queries = torch.tensor([answer.query for answer in answers], device=loaded.device).T
    token, position, segment, forced = queries[:4]
    temperature, top_p, draw = torch.tensor([answer.sampling for answer in answers], dtype=torch.float64, device=loaded.device).T
    choosing = Choosing(forced, temperature, top_p, draw, any(answer.samples for answer in answers))
    decode = DecodePass(lanes, position.to(torch.int32), impl)
    for lane in lanes:
        lane.begin(decode.position, segment.to(torch.uint8))
    logprobs = _forward(loaded, decode, token, queries[4:])
    ids, reals = measure(logprobs, choose(logprobs, choosing))
    for lane in lanes:
        lane.commit()
    stats = [logit_stats(*row) for row in zip(ids.tolist(), reals.tolist(), strict=True)]
    heads: list[HeadRow | None] = []
    for number, lane in enumerate(lanes):
        heads += head_rows(decode.stats[number]) if number in decode.stats else [None] * len(lane.answers)
    return Step(ids[:, 0].tolist(), stats, heads)


def _forward(loaded: LoadedModel, decode: DecodePass, token: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[batch, vocab]` from tokens `[batch]` and rotary positions `[axes, batch]`."""
    rotary = rotary[:, :, None]
    with active(decode):
        hidden = loaded.model.model(
            input_ids=token[:, None],
            # One that is prepared already: nobody builds another, nor looks on the host whether one is needed.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=token.device),
            position_ids=rotary if rotary.shape[0] > 1 else rotary[0],
            use_cache=False,
        ).last_hidden_state
    return torch.log_softmax(loaded.model.lm_head(hidden[:, -1]).float(), -1)


def head_rows(layers: Sequence[PackedStats]) -> list[HeadRow]:
    """One row for each sequence from the statistics of every layer."""
    # Each sequence's numbers side by side, [batch, ...]: a copy a type, and all fields are views of it.
    reals = torch.stack([stats.reals for stats in layers], 1).permute(2, 0, 1, 3).contiguous().cpu().numpy()
    indices = torch.stack([stats.indices for stats in layers], 1).permute(2, 0, 1, 3).contiguous().cpu().numpy()
    mass = torch.stack([stats.mass for stats in layers], 1).cpu().numpy()
    retained = torch.stack([stats.retained for stats in layers], 1).cpu().numpy()
    return [
        HeadRow(**dict(zip(REALS, reals[row])), **dict(zip(INDICES, indices[row])), mass=mass[row], retained=retained[row])  # noqa: B905
        for row in range(len(mass))
    ]
