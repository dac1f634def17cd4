"""One decode step of everything that runs: a function on fixed buffers, of which the host reads the results and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.answer import Answer
from introspect.attention import DecodePass, active
from introspect.captured import Captured
from introspect.forward import Forward
from introspect.lanes import Lane, Wants
from introspect.loading import LoadedModel
from introspect.pool import Runs, SlotPool
from introspect.sampling import UNFORCED, Drawing, choose, logit_stats, measure
from introspect.types import HeadRow, LogitStats
from introspect_kernels import PackedStats

StepShape = tuple[tuple[Wants, int], ...]
"""What each lane wants, and how many rows it has."""


class HeadTensors(NamedTuple):
    """The statistics of every layer, each sequence's numbers side by side.

    Attributes:
        reals: `float32 [batch, 11, layers, heads]`, in the order of `REALS`.
        indices: `int32 [batch, 2, layers, heads]`, in the order of `INDICES`.
        mass: `float32 [batch, layers, heads, 6]`.
        retained: `int32 [batch, layers, kv_heads, 6]`.
    """

    reals: torch.Tensor
    indices: torch.Tensor
    mass: torch.Tensor
    retained: torch.Tensor


class Outputs(NamedTuple):
    """What a step leaves on the device: see `measure`; and each lane's head statistics and received sums where it wants them."""

    ids: torch.Tensor
    reals: torch.Tensor
    heads: tuple[HeadTensors | None, ...]
    received: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Step:
    """What a decode step gave each answer: a token, the statistics of its distribution, and where it wants them two more.

    These are the heads' statistics and what the entries that the step completes have received (`Lane.received`).
    """

    tokens: list[int]
    logits: list[LogitStats]
    heads: list[HeadRow | None]
    received: list[NDArray[np.float32] | None]


class DecodeStep:
    """Decode steps of one shape.

    Args:
        loaded: the model.
        forward: its way from tokens to log-probabilities.
        pool: where entries lie; a step made before its tensors moved is of no use any more.
        shape: of the batch.
        impl: which `decode_attention` implementation.
        parking: see `Lane`.
        captures: whether to replay it as a CUDA graph.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        forward: Forward,
        pool: SlotPool,
        shape: StepShape,
        impl: str | None = None,
        parking: Runs | None = None,
        captures: bool = False,
    ) -> None:
        self._loaded, self._forward, self._impl = loaded, forward, impl
        self._captured = Captured(self.compute) if captures else None
        self.lanes: list[Lane] = []
        self.rows = 0
        for wanted, size in shape:
            self.lanes.append(Lane(pool, wanted, slice(self.rows, self.rows + size), loaded.windows, parking))
            self.rows += size
        self._queries = torch.empty(0)
        self._drawing = torch.zeros(self.rows, 3, dtype=torch.float64, device=loaded.device)

    @property
    def answers(self) -> list[Answer]:
        """Whose step it is, in the order of its results."""
        return [answer for lane in self.lanes for answer in lane.answers]

    def fill(self, groups: Sequence[Sequence[Answer]]) -> None:
        """Take up answers, a group a lane."""
        for lane, group in zip(self.lanes, groups, strict=True):
            lane.fill(group)

    def write_back(self) -> None:
        """Tell each answer's runs how long they have become, and give them up."""
        for lane in self.lanes:
            lane.write_back()

    def run(self) -> Step:
        """One token of every answer; a step that fails adds nothing to any."""
        with torch.inference_mode():
            variant = self.load()
            if self._captured is None or self._forward.is_watched:
                return self.read(self.compute(*variant))
            return self.read(self._captured(*variant))

    def load(self) -> tuple[bool, bool]:
        """Write the answers' queries into the buffers; whether a token is forced, and whether one is drawn."""
        queries, drawing, samples, forces = [], [], False, False
        for lane in self.lanes:
            idle = lane.rows.stop - lane.rows.start - len(lane.answers)
            mine = [answer.query for answer in lane.answers]
            queries += mine + [[0, 0, 0, UNFORCED, *[0] * (len(mine[0]) - 4)]] * idle
            drawing += [answer.sampling for answer in lane.answers] + [(0.0, 1.0, 0.0)] * idle
            samples |= any(answer.samples for answer in lane.answers)
            forces |= any(answer.forced for answer in lane.answers)
        given = torch.tensor(queries)
        if self._queries.shape != given.shape:
            self._queries = torch.empty_like(given, device=self._loaded.device)
        self._queries.copy_(given)
        if samples:
            self._drawing.copy_(torch.tensor(drawing, dtype=torch.float64))
        return forces, samples

    def compute(self, forces: bool, samples: bool) -> Outputs:
        """The step itself: from buffers to outputs, on the device; the host reads nothing.

        Args:
            forces: whether any row's token is forced.
            samples: whether any row's token is drawn.
        """
        token, position, segment, forced, *rotary = self._queries.unbind(1)
        decode = DecodePass(self.lanes, position.to(torch.int32), self._impl)
        origin = segment.to(torch.uint8)
        for lane in self.lanes:
            lane.begin(decode.position, origin)
        try:
            with active(decode):
                logprobs = self._forward(token, torch.stack(rotary) if len(rotary) > 1 else rotary[0])
            drawing = Drawing(*self._drawing.unbind(1)) if samples else None
            ids, reals = measure(logprobs, choose(logprobs, forced if forces else None, drawing))
            heads = tuple(pack_heads(decode.stats[n]) if n in decode.stats else None for n in range(len(self.lanes)))
            received = tuple(lane.received() if lane.wants_influence else None for lane in self.lanes)
        except Exception:
            for lane in self.lanes:
                lane.undo()
            raise
        return Outputs(ids, reals, heads, received)

    def read(self, outputs: Outputs) -> Step:
        """Bring a step's results to the host: all copies are under way before it waits."""
        ids, reals = (tensor.to("cpu", non_blocking=True) for tensor in outputs[:2])
        copied = [found and HeadTensors(*(tensor.to("cpu", non_blocking=True) for tensor in found)) for found in outputs.heads]
        columns = [None if found is None else found.to("cpu", non_blocking=True) for found in outputs.received]
        if outputs.ids.is_cuda:
            torch.cuda.current_stream(outputs.ids.device).synchronize()
        all_ids, all_reals = ids.tolist(), reals.tolist()
        tokens: list[int] = []
        logits: list[LogitStats] = []
        heads: list[HeadRow | None] = []
        received: list[NDArray[np.float32] | None] = []
        for lane, found, sums in zip(self.lanes, copied, columns, strict=True):
            used = len(lane.answers)
            rows = range(lane.rows.start, lane.rows.start + used)
            tokens += [all_ids[row][0] for row in rows]
            logits += [logit_stats(all_ids[row], all_reals[row]) for row in rows]
            heads += head_rows(found)[:used] if found is not None else [None] * used
            received += list(sums.numpy()[:used]) if sums is not None else [None] * used
        return Step(tokens, logits, heads, received)


def pack_heads(layers: Sequence[PackedStats]) -> HeadTensors:
    """The statistics of a lane's layers in four tensors."""
    reals, indices = (
        torch.stack([getattr(stats, name) for stats in layers], 1).permute(2, 0, 1, 3).contiguous() for name in ("reals", "indices")
    )
    return HeadTensors(reals, indices, *(torch.stack([getattr(stats, name) for stats in layers], 1) for name in ("mass", "retained")))


def head_rows(found: HeadTensors) -> list[HeadRow]:
    """A row for each sequence; its arrays are views."""
    return HeadRow(*(tensor.numpy() for tensor in found)).rows()
