"""Launches the kernels of `decode_attention`: plan, attend, combine, and the received sums where they are kept.

The host reads nothing back: sizes come from shapes alone, so that a captured
CUDA graph stays right while lengths grow.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton

from introspect_kernels.arena import Arena
from introspect_kernels.decode.packing import REALS, PackedStats
from introspect_kernels.decode.triton_attend import attend_kernel
from introspect_kernels.decode.triton_choices import PART, Choice, choose, padded_head_dim
from introspect_kernels.decode.triton_combine import combine_kernel
from introspect_kernels.decode.triton_plan import LARGE_CHUNK, SMALL_CHUNK, max_chunks, plan_kernel
from introspect_kernels.decode.triton_received import received_kernel
from introspect_kernels.implementations import interpreted
from introspect_kernels.segments import NUM_SEGMENTS

LOG2E = math.log2(math.e)
_INTERPRETED_PROGRAMS = 3  # few, so that programs take several chunks there as well


def decode_attention_triton(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool
) -> tuple[torch.Tensor, PackedStats | None]:
    """See `decode_attention`; accumulates in fp32 and updates `arena.received` where there is one.

    Raises:
        KernelInputError: a shape or dtype that the kernels are not built for.
    """
    choice = choose(q.dtype, q.shape[2], q.shape[1] // arena.num_kv_heads, keep_scores=arena.received is not None)
    launch = _Launch(q.contiguous(), arena, position.to(torch.int32), scale * LOG2E, stats or arena.received is not None)
    with torch.cuda.device_of(q):
        launch.plan()
        launch.attend(choice)
        packed = launch.combine()
        if arena.received is not None:
            launch.receive(packed, choice.block)
    return launch.out, packed if stats else None


class _Launch:
    """Workspace of one call. Rows of pieces that do not exist are neither written nor read."""

    def __init__(self, q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool) -> None:
        self.q, self.arena, self.position, self.scale, self.stats = q, arena, position, scale, stats
        self.heads, self.head_dim = q.shape[0] * q.shape[1], q.shape[2]
        self.runs = arena.start.numel()
        self.group = q.shape[1] // arena.num_kv_heads
        self.start, self.length = arena.start.contiguous(), arena.length.contiguous()
        self.kinds = NUM_SEGMENTS if stats else 1
        self.chunks = max_chunks(arena.k.shape[0], self.runs)
        pieces = self.chunks * self.kinds
        self.out = torch.empty_like(q)
        self.chunk_run, self.chunk_pieces = self._integers(2, self.chunks).unbind(0)
        self.pieces = self._integers(4, pieces).unbind(0)  # low, high, count, segment
        self.run_chunk = self._integers(self.runs + 1)
        self.part_out = self._reals(pieces, self.group, self.head_dim)
        self.part_real = self._reals(5, pieces, self.group)
        self.part_index = self._integers(pieces, self.group)
        keep = arena.received is not None
        self.scores = self._reals(arena.k.shape[0], self.group) if keep else self.part_real

    def _integers(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=self.q.device)

    def _reals(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.q.device)

    def plan(self) -> None:
        """Fill the work list."""
        plan_kernel[(self.chunks,)](
            self.arena.segment,
            self.start,
            self.length,
            self.chunk_run,
            self.chunk_pieces,
            *self.pieces,
            self.run_chunk,
            self.runs,
            RUNS_PAD=triton.next_power_of_2(max(1, self.runs)),
            PIECES=self.kinds,
            SMALL=SMALL_CHUNK,
            LARGE=LARGE_CHUNK,
            num_warps=4,
        )

    def attend(self, choice: Choice) -> None:
        """Fill the partial results."""
        programs = choice.residents * _multiprocessors(self.q.device) if self.q.is_cuda else _INTERPRETED_PROGRAMS
        attend_kernel[(min(self.chunks, programs),)](
            self.q,
            self.arena.k,
            self.arena.v,
            self.arena.position,
            self.arena.segment,
            self.start,
            self.position,
            self.chunk_run,
            self.chunk_pieces,
            *self.pieces,
            self.run_chunk,
            self.part_out,
            self.part_real,
            self.part_index,
            self.scores,
            self.scale,
            self.runs,
            self.arena.num_kv_heads,
            self.chunks,
            GROUP=self.group,
            HEAD_DIM=self.head_dim,
            HEAD_PAD=padded_head_dim(self.head_dim),
            PART=min(padded_head_dim(self.head_dim), PART),
            PIECES=self.kinds,
            BLOCK=choice.block,
            STAGES=choice.stages,
            STATS=self.stats,
            KEEP_SCORES=self.arena.received is not None,
            UPCAST=interpreted(),
            num_warps=choice.warps,
            num_stages=choice.stages,
            maxnreg=choice.registers,
            enable_fp_fusion=True,  # its default changes between Triton releases
        )

    def combine(self) -> PackedStats:
        """Fill the output and return the statistics (not all filled without `stats`)."""
        batch, heads, _ = self.q.shape
        packed = PackedStats(
            reals=self._reals(len(REALS), batch, heads),
            mass=self._reals(batch, heads, NUM_SEGMENTS),
            indices=self._integers(2, batch, heads),
            retained=self._integers(*self.start.shape, NUM_SEGMENTS),
        )
        combine_kernel[(self.heads,)](
            self.q,
            self.arena.k,
            self.start,
            self.length,
            self.run_chunk,
            self.pieces[2],
            self.pieces[3],
            self.part_out,
            self.part_real,
            self.part_index,
            self.arena.position,
            self.position,
            self.out,
            packed.reals,
            packed.mass,
            packed.indices,
            packed.retained,
            self.scale,
            self.arena.num_kv_heads,
            self.chunks,
            GROUP=self.group,
            HEAD_DIM=self.head_dim,
            HEAD_PAD=padded_head_dim(self.head_dim),
            PIECES=self.kinds,
            STATS=self.stats,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return packed

    def receive(self, packed: PackedStats, block: int) -> None:
        """Add this step to the arena's received sums."""
        programs = 4 * _multiprocessors(self.q.device) if self.q.is_cuda else _INTERPRETED_PROGRAMS
        received_kernel[(min(self.chunks, programs),)](
            self.scores,
            packed.reals,
            self.arena.position,
            self.start,
            self.length,
            self.position,
            self.chunk_run,
            self.run_chunk,
            self.arena.received,
            self.arena.queries,
            self.runs,
            self.arena.num_kv_heads,
            self.chunks,
            GROUP=self.group,
            BLOCK=block,
            SMALL=SMALL_CHUNK,
            LARGE=LARGE_CHUNK,
            num_warps=4,
            maxnreg=128,  # told nothing, ptxas takes 32 and spills
            enable_fp_fusion=True,
        )


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
