"""Where the entries of a decode step go: the runs of the answers that want the same of it, in tensors that stay where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from introspect.answer import Answer
from introspect.influence import LAGS, column_sums
from introspect.pool import Runs, SlotPool
from introspect_kernels import Arena

Wants = tuple[bool, bool, bool]
"""Whether an answer's next step is to give head statistics, whether it keeps received attention, and whether it tells of that."""

_NO_WINDOW = 2**31 - 1


def wants(answer: Answer) -> Wants:
    """What an answer wants of its next step."""
    request, tracked = answer.prompt.request, answer.runs is not None and answer.runs.tracked
    return request.signals and not answer.is_feeding, tracked, tracked and request.influence and not answer.is_feeding


class Lane:
    """Answers of a step that want the same of it.

    All that a step changes is changed in place, and nothing of it is read by the host, so that a captured
    CUDA graph can do it again. Rows that no answer has attend to nothing; what they write goes to parked slots.

    Args:
        pool: where entries lie.
        wanted: what the answers want.
        rows: which rows of the step's batch are theirs.
        windows: per layer how many entries a query sees, or `None` for all.
        parking: runs that no answer owns, where there may be more rows than answers.
    """

    def __init__(self, pool: SlotPool, wanted: Wants, rows: slice, windows: Sequence[int | None], parking: Runs | None = None) -> None:
        self.rows, self.answers = rows, list[Answer]()
        self.wants_stats, self._tracked, self.wants_influence = wanted
        self._pool, self._runs, self._parking = pool, list[Runs](), parking
        layers, heads, device = *pool.shape, pool.device
        shape = (layers, rows.stop - rows.start, heads)
        self._start, self._length, self._capacity, self._over = (torch.zeros(shape, dtype=torch.int32, device=device) for _ in range(4))
        self._first = self._start
        self._slot = self._start.long()
        self._lags = torch.tensor(LAGS, dtype=torch.int32, device=device)
        self._alive = torch.zeros(shape[1], 1, dtype=torch.int32, device=device)
        self._position, self._segment = (torch.zeros(shape[1:], dtype=dtype, device=device) for dtype in (torch.int32, torch.uint8))
        sizes = [_NO_WINDOW if window is None else window for window in windows]
        self._windows = torch.tensor(sizes, dtype=torch.int32, device=device)[:, None, None] if min(sizes) < _NO_WINDOW else None
        self._slots = self._slot.flatten(1).unbind(0)
        self._parts = list(zip(self._start.unbind(0), self._length.unbind(0), self._capacity.unbind(0), strict=True))

    def fill(self, answers: Sequence[Answer]) -> None:
        """Take up answers, at most as many as there are rows."""
        self.answers = list(answers)
        self._runs = [answer.runs for answer in answers if answer.runs is not None]
        used = len(self._runs)
        for tensor, name in ((self._start, "start"), (self._length, "length"), (self._capacity, "capacity")):
            tensor[:, :used] = torch.stack([getattr(one, name) for one in self._runs], 1)
        if self._parking is not None:
            self._start[:, used:] = self._parking.start[:, None]
            self._length[:, used:], self._capacity[:, used:] = 0, 0
        self._alive.copy_(torch.arange(len(self._alive))[:, None] < used)
        self._slot.copy_(self._start + self._length - self._alive)
        self._first = self._start.clone()

    def begin(self, position: torch.Tensor, segment: torch.Tensor) -> None:
        """Make room in all layers at once for the step's entries, `position` and `segment` `[batch]`."""
        self._position.copy_(position[self.rows, None])
        self._segment.copy_(segment[self.rows, None])
        self._slot += self._alive
        self._length += self._alive
        if self._windows is not None:  # entries that a layer with a window does not see any more are let go
            torch.clamp(self._length - self._windows, min=0, out=self._over)
            self._start += self._over
            self._length -= self._over
            self._capacity -= self._over

    def undo(self) -> None:
        """Forget the step that began last: it has failed."""
        self._slot -= self._alive
        self._length += self._over - self._alive
        self._start -= self._over
        self._capacity += self._over

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Arena:
        """Store the step's own entry of each row, `[rows, kv_heads, head_dim]`; what a layer's queries see, that entry included.

        Nobody asks whether there is room: the scheduler knows, and the host reads no length.
        """
        arena, slots = self._pool.arena(layer, *self._parts[layer], tracked=self._tracked), self._slots[layer]
        arena.k.index_copy_(0, slots, k.flatten(0, 1))
        arena.v.index_copy_(0, slots, v.flatten(0, 1))
        arena.position.index_copy_(0, slots, self._position.view(-1))
        arena.segment.index_copy_(0, slots, self._segment.view(-1))
        if arena.received is not None and arena.queries is not None:
            arena.received.index_fill_(0, slots, 0)
            arena.queries.index_fill_(0, slots, 0)
        return arena

    def received(self) -> torch.Tensor:
        """What the entries that the step completes have received, `[rows, 2, layers, kv_heads]`; see `column_sums`."""
        arenas = [self._pool.arena(layer, *parts, tracked=True) for layer, parts in enumerate(self._parts)]
        return column_sums(arenas, self._slot, self._position, self._lags)

    def write_back(self) -> None:
        """Tell each answer's runs how long they have become; they may have moved since they were taken up."""
        for row, one in enumerate(self._runs):
            one.length = self._length[:, row].clone()
            if self._windows is not None:
                slid = self._start[:, row] - self._first[:, row]
                one.start, one.capacity = one.start + slid, one.capacity - slid
        self._runs = []
