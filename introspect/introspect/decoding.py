"""One decode step of everything that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from introspect.answer import Answer
from introspect.attention import DecodePass, active
from introspect.loading import LoadedModel
from introspect.pool import SlotPool
from introspect.sampling import Drawing, choose, logit_stats, measure
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
        self._runs = [answer.runs for answer in answers if answer.runs is not None]
        self.wants_stats, tracked = wants(answers[0])
        self._start, self._length, self._capacity = (
            torch.stack([getattr(one, name) for one in self._runs], 1) for name in ("start", "length", "capacity")
        )
        self._first = self._start.clone()
        sizes = [_NO_WINDOW if window is None else window for window in windows]
        self._windows = torch.tensor(sizes, dtype=torch.int32)[:, None, None].to(self._start.device) if min(sizes) < _NO_WINDOW else None
        self._over = torch.zeros_like(self._start)
        # What follows is changed in place by each step, so that it is looked up once.
        self._slot = (self._start + self._length - 1).long()
        self._slots = self._slot.flatten(1).unbind(0)
        parts = zip(self._start.unbind(0), self._length.unbind(0), self._capacity.unbind(0), strict=True)
        self._arenas = [pool.arena(layer, *part, tracked=tracked) for layer, part in enumerate(parts)]
        self._position, self._segment = (torch.zeros_like(self._start[0], dtype=dtype) for dtype in (torch.int32, torch.uint8))

    def begin(self, position: torch.Tensor, segment: torch.Tensor) -> None:
        """Make room in all layers at once for the step's entries, `position` and `segment` `[batch]`."""
        self._position.copy_(position[self.rows, None])
        self._segment.copy_(segment[self.rows, None])
        self._slot += 1
        self._length += 1
        if self._windows is not None:  # entries that a layer with a window does not see any more are let go
            torch.clamp(self._length - self._windows, min=0, out=self._over)
            self._start += self._over
            self._length -= self._over
            self._capacity -= self._over

    def undo(self) -> None:
        """Forget the step that began last: it has failed."""
        self._slot -= 1
        self._length += self._over - 1
        self._start -= self._over
        self._capacity += self._over

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Arena:
        """Store the step's own entry of each answer, `[batch, kv_heads, head_dim]`; what a layer's queries see, that entry included.

        Nobody asks whether there is room: the scheduler knows, and the host reads no length.
        """
        arena, slots = self._arenas[layer], self._slots[layer]
        arena.k.index_copy_(0, slots, k.flatten(0, 1))
        arena.v.index_copy_(0, slots, v.flatten(0, 1))
        arena.position.index_copy_(0, slots, self._position.view(-1))
        arena.segment.index_copy_(0, slots, self._segment.view(-1))
        if arena.received is not None and arena.queries is not None:
            arena.received.index_fill_(0, slots, 0)
            arena.queries.index_fill_(0, slots, 0)
        return arena

    def write_back(self) -> None:
        """Tell each answer's runs how long they have become; they may have moved since the lane was made."""
        for row, one in enumerate(self._runs):
            one.length = self._length[:, row].clone()
            if self._windows is not None:
                slid = self._start[:, row] - self._first[:, row]
                one.start, one.capacity = one.start + slid, one.capacity - slid
        self._first = self._start.clone()


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
    """One token of every answer; one that fails adds nothing to any. The device's results are read once, when all of it is done."""
    answers = [answer for lane in lanes for answer in lane.answers]
    token, position, segment, forced, *rotary = torch.tensor([answer.query for answer in answers], device=loaded.device).unbind(1)
    decode = DecodePass(lanes, position.to(torch.int32), impl)
    for lane in lanes:
        lane.begin(decode.position, segment.to(torch.uint8))
    try:
        logprobs = _forward(loaded, decode, token, torch.stack(rotary) if len(rotary) > 1 else rotary[0])
        ids, reals = measure(logprobs, choose(logprobs, forced, _drawing(answers, loaded.device)))
    except Exception:
        for lane in lanes:
            lane.undo()
        raise
    stats = [logit_stats(*row) for row in zip(ids.tolist(), reals.tolist(), strict=True)]
    heads: list[HeadRow | None] = []
    for number, lane in enumerate(lanes):
        heads += head_rows(decode.stats[number]) if number in decode.stats else [None] * len(lane.answers)
    return Step(ids[:, 0].tolist(), stats, heads)


def _drawing(answers: Sequence[Answer], device: torch.device) -> Drawing | None:
    """How the rows draw their tokens; `None` where all are greedy."""
    if not any(answer.samples for answer in answers):
        return None
    return Drawing(*torch.tensor([answer.sampling for answer in answers], dtype=torch.float64, device=device).unbind(1))


def _forward(loaded: LoadedModel, decode: DecodePass, token: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[batch, vocab]` from tokens `[batch]` and rotary positions `[batch]` or `[axes, batch]`."""
    with active(decode):
        hidden = loaded.language_model(
            inputs_embeds=loaded.model.get_input_embeddings()(token[:, None]),
            # One that is prepared already: nobody builds another, nor looks on the host whether one is needed.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=token.device),
            position_ids=rotary[..., None],
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
