"""What is measured: the attention of known models over caches of known length, as arenas of random entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.segments import Segment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """One layer's attention heads.

    Attributes:
        model: whose.
        heads: query heads.
        kv_heads: KV heads.
        head_dim: size of each.
    """

    model: str
    heads: int
    kv_heads: int
    head_dim: int


EMBEDDED = Shape("embedded", 8, 4, 32)
QWEN_7B = Shape("Qwen2.5-VL-7B", 28, 4, 128)
QWEN_72B = Shape("Qwen2.5-VL-72B", 64, 8, 128)
LLAVA_7B = Shape("LLaVA-1.5-7B", 32, 32, 128)


@dataclass(frozen=True)
class Problem:
    """One decode step of one layer: every run has the same number of entries, so that dense rivals can run on it.

    Attributes:
        shape: the heads.
        batch: sequences.
        entries: of each KV head.
        dtype: name of the cache's dtype, a key of `DTYPES`.
    """

    shape: Shape
    batch: int
    entries: int
    dtype: str

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one call reads."""
        return 2 * self.batch * self.shape.kv_heads * self.entries * self.shape.head_dim * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Inputs:
    """A problem's tensors; `k` and `v` are views of the arena's, `[batch, num_kv_heads, entries, head_dim]`."""

    q: torch.Tensor
    arena: Arena
    k: torch.Tensor
    v: torch.Tensor
    position: torch.Tensor
    scale: float


def make(problem: Problem, device: str = "cpu", seed: int = 0) -> Inputs:
    """Random entries whose segments lie as in a prompt: a sink, a template, an image of 60 %, a question, an answer."""
    generator = torch.Generator(device).manual_seed(seed)
    shape, dtype = problem.shape, DTYPES[problem.dtype]

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, shape.head_dim, generator=generator, device=device, dtype=dtype)

    cache = (problem.batch, shape.kv_heads, problem.entries)
    segment = segments(problem.entries).to(device)
    arena = Arena.dense(draw(*cache), draw(*cache), segment.expand(problem.batch, -1))
    k, v = (t.view(*cache, shape.head_dim) for t in (arena.k, arena.v))
    position = torch.full((problem.batch,), problem.entries - 1, dtype=torch.int32, device=device)
    return Inputs(draw(problem.batch, shape.heads), arena, k, v, position, shape.head_dim**-0.5)


def segments(entries: int) -> torch.Tensor:
    """`uint8 [entries]`: one sink, then 5 % template, 60 % image, 30 % question, the rest generated."""
    ends = [1, max(1, entries // 20), entries * 65 // 100, entries * 95 // 100, entries]
    kinds = (Segment.SINK, Segment.TEMPLATE, Segment.IMAGE, Segment.QUESTION, Segment.GENERATED)
    counts = torch.tensor(ends).diff(prepend=torch.tensor([0]))
    return torch.tensor([int(kind) for kind in kinds], dtype=torch.uint8).repeat_interleave(counts)
