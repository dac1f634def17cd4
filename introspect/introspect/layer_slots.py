"""The slots of one layer: which are free, and who owns the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from introspect.pool import Runs


@dataclass(eq=False)
class LayerSlots:
    """One layer's slots.

    Attributes:
        k: `[slots, head_dim]`.
        v: likewise.
        position: `int32 [slots]`, token index of each entry.
        segment: `uint8 [slots]`, where it came from.
        received: `float32 [slots]`, attention it received, where any sequence keeps that.
        queries: `int32 [slots]`, over how many queries.
        slots: how many there are.
        free: holes `(first, size)` in ascending order.
        owners: the sequences with a block here.
    """

    k: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    v: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    position: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    segment: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    received: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    slots: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)
    owners: dict[Runs, None] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Slots that a sequence owns."""
        return self.slots - sum(size for _, size in self.free)

    def take_all(self, sizes: Sequence[int]) -> list[int] | None:
        """First slots of the first holes that are large enough, which are no longer free; `None` where there are not enough."""
        free, firsts = list(self.free), []
        for size in sizes:
            at = next((at for at, (_, room) in enumerate(free) if room >= size), None)
            if at is None:
                return None
            first, room = free[at]
            free[at : at + 1] = [(first + size, room - size)] if room > size else []
            firsts.append(first)
        self.free = free
        return firsts

    def give(self, first: int, size: int) -> None:
        """Free slots, joined with the holes beside them."""
        holes = sorted([*self.free, (first, size)])
        self.free = []
        for start, room in holes:
            if self.free and sum(self.free[-1]) == start:
                self.free[-1] = (self.free[-1][0], self.free[-1][1] + room)
            else:
                self.free.append((start, room))
