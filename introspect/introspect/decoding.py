"""One decode step of everything that runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.answer import Answer
from introspect.attention import DecodePass, active
from introspect.loading import LoadedModel
from introspect.pool import SlotPool
from introspect.types import HeadRow
from introspect_kernels import Arena, HeadStats


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
        self._pool, self._runs, self._windows = pool, runs, windows
        self._start, self._length, self._capacity = (
            torch.stack([getattr(one, name) for one in runs], 1) for name in ("start", "length", "capacity")
        )
        self._first = self._start.clone() if any(window is not None for window in windows) else None

    def arena(self, layer: int) -> Arena:
        """One layer's entries of these answers."""
        return self._pool.arena(layer, self._start[layer], self._length[layer], self._capacity[layer], tracked=self._tracked)

    def slide(self, layer: int) -> None:
        """Let the entries go that a layer with a window does not see any more."""
        window = self._windows[layer]
        if window is not None:
            over = (self._length[layer] - window).clamp(min=0)
            self._start[layer] += over
            self._length[layer] -= over
            self._capacity[layer] -= over

    def write_back(self) -> None:
        """Tell each answer's runs how long they have become; they may have moved since the lane was made."""
        for row, one in enumerate(self._runs):
            one.length = self._length[:, row].clone()
            if self._first is not None:
                slid = self._start[:, row] - self._first[:, row]
                one.start, one.capacity = one.start + slid, one.capacity - slid
        self._first = self._start.clone() if self._first is not None else None

    def state(self) -> tuple[torch.Tensor, ...]:
        """Where the runs are and how long, to go back to if a step fails."""
        return self._start.clone(), self._length.clone(), self._capacity.clone()

    def restore(self, state: tuple[torch.Tensor, ...]) -> None:
        """Forget what a step that failed has appended already."""
        for tensor, before in zip((self._start, self._length, self._capacity), state, strict=True):
            tensor.copy_(before)


def wants(answer: Answer) -> tuple[bool, bool]:
    """Whether an answer's next step is to give head statistics, and whether it keeps received attention."""
    return answer.prompt.request.signals and not answer.is_feeding, answer.runs is not None and answer.runs.tracked


@torch.inference_mode()
def decode_step(loaded: LoadedModel, lanes: Sequence[Lane], impl: str | None = None) -> tuple[torch.Tensor, list[HeadRow | None]]:
    """One token of every answer.

    Returns:
        Log-probabilities `[batch, vocab]` and each answer's head statistics, where it wants them.
    """
    answers = [answer for lane in lanes for answer in lane.answers]
    device = loaded.device
    queries = [answer.query for answer in answers]
    rotary = torch.tensor([answer.rotary for answer in answers], device=device).T[:, :, None]
    decode = DecodePass(
        lanes,
        torch.tensor([answer.position for answer in answers], dtype=torch.int32, device=device),
        torch.tensor([segment for _, segment in queries], dtype=torch.uint8, device=device),
        impl,
    )
    with active(decode):
        hidden = loaded.model.model(
            input_ids=torch.tensor([[token] for token, _ in queries], device=device),
            position_ids=rotary if rotary.shape[0] > 1 else rotary[0],
            use_cache=False,
        ).last_hidden_state
    logprobs = torch.log_softmax(loaded.model.lm_head(hidden[:, -1]).float(), -1)
    heads: list[HeadRow | None] = []
    for number, lane in enumerate(lanes):
        heads += head_rows(decode.stats[number]) if number in decode.stats else [None] * len(lane.answers)
    return logprobs, heads


def head_rows(layers: list[HeadStats]) -> list[HeadRow]:
    """One row for each sequence from the statistics of every layer."""
    stacked: dict[str, NDArray[np.float32]] = {
        name: torch.stack([getattr(stats, name) for stats in layers], 1).cpu().numpy() for name in HeadStats._fields
    }
    return [HeadRow(**{name: value[row] for name, value in stacked.items()}) for row in range(layers[0].lse.shape[0])]
