"""Where all sequences' keys and values live: per layer a pool of slots, of which each sequence owns one block.

Blocks come and go while other sequences decode: freed slots are used again, a
layer is compacted where its free slots lie too scattered, and grows by exactly
what is missing. One layer is rebuilt at a time, so that a rebuild adds at most one layer's pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from introspect.layer_slots import LayerSlots
from introspect_kernels import Arena


@dataclass(frozen=True)
class KVBytes:
    """Memory of keys, values and what is known of each entry, in bytes.

    Attributes:
        allocated: of all slots there are.
        owned: of the slots that sequences own, their slack included.
        filled: of the slots that hold an entry.
    """

    allocated: int = 0
    owned: int = 0
    filled: int = 0

    def __add__(self, other: KVBytes) -> KVBytes:
        """Both together."""
        return KVBytes(self.allocated + other.allocated, self.owned + other.owned, self.filled + other.filled)


@dataclass(eq=False)
class Runs:
    """The runs of one sequence: in each layer a block of slots, in it one run a KV head.

    Attributes:
        start: `int32 [layers, kv_heads]`, first slot of each run.
        length: `int32 [layers, kv_heads]`, entries in use.
        capacity: `int32 [layers, kv_heads]`, slots owned.
        blocks: per layer the first slot and the size of the block; `None` where there is none yet.
        tracked: whether received attention is kept.
    """

    start: torch.Tensor
    length: torch.Tensor
    capacity: torch.Tensor
    blocks: list[tuple[int, int] | None]
    tracked: bool = False

    @property
    def slots(self) -> int:
        """Slots owned in all layers."""
        return sum(block[1] for block in self.blocks if block is not None)


class SlotPool:
    """The slots of every layer.

    Args:
        layers: layers of the language model.
        kv_heads: KV heads of each.
        device: where keys and values are.
        shrinks: whether memory is given back while sequences come and go. Where tensors had better stay where they are
            (a CUDA graph knows their addresses) it is kept for the next sequence.

    Attributes:
        shape: layers of the language model, and KV heads of each.
        device: where keys and values are.
        version: rises whenever runs have moved.
    """

    def __init__(self, layers: int, kv_heads: int, device: torch.device, *, shrinks: bool = True) -> None:
        self._layers = [LayerSlots() for _ in range(layers)]
        self.shape, self.device = (layers, kv_heads), device
        self._tracked, self._shrinks = 0, shrinks
        self.version = 0

    def new_runs(self, *, tracked: bool = False) -> Runs:
        """Runs without slots; `tracked` keeps what their entries receive."""
        start, length, capacity = (torch.zeros(self.shape, dtype=torch.int32, device=self.device) for _ in range(3))
        self._tracked += tracked
        return Runs(start, length, capacity, [None] * self.shape[0], tracked)

    def allocate(self, layer: int, runs: Sequence[Runs], capacity: torch.Tensor, like: torch.Tensor) -> None:
        """Give each of `runs` a block in `layer`.

        Args:
            layer: which.
            runs: sequences without slots there.
            capacity: `int32 [len(runs), kv_heads]`, slots for each run; on the CPU.
            like: `[..., head_dim]`, in the keys' dtype.
        """
        pool = self._layers[layer]
        sizes = capacity.sum(1).tolist()
        firsts = pool.take_all(sizes)
        if firsts is None:  # scattered or missing: afterwards one hole lies behind all blocks
            self._rebuild(layer, max(pool.used + sum(sizes), 0 if self._shrinks else pool.slots), like)
            firsts = cast("list[int]", pool.take_all(sizes))
        offsets = capacity.cumsum(1) - capacity
        for row, (one, first, size) in enumerate(zip(runs, firsts, sizes, strict=True)):
            one.blocks[layer] = (first, size)
            one.start[layer], one.capacity[layer] = (first + offsets[row]).to(self.device), capacity[row].to(self.device)
            one.length[layer] = 0
            pool.owners[one] = None
            if pool.received is not None and pool.queries is not None:
                pool.received[first : first + size], pool.queries[first : first + size] = 0.0, 0

    def fill(self, layer: int, runs: Sequence[Runs], k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor) -> None:
        """Store whole prompts, whose heads have one capacity: entry i is token i.

        Args:
            layer: which.
            runs: of each prompt, with slots there.
            k: `[len(runs), kv_heads, tokens, head_dim]`.
            v: likewise.
            segment: `uint8 [len(runs), tokens]`.
        """
        pool, tokens = self._layers[layer], k.shape[2]
        position = torch.arange(tokens, dtype=torch.int32, device=self.device)
        for row, one in enumerate(runs):
            first, size = one.blocks[layer] or (0, 0)
            for column, new in ((pool.k, k[row]), (pool.v, v[row]), (pool.position, position), (pool.segment, segment[row])):
                column[first : first + size].unflatten(0, (self.shape[1], -1))[:, :tokens] = new
            one.length[layer] = tokens

    def park(self) -> Runs:
        """Runs of one slot each that no sequence owns; every layer must have had slots before."""
        runs = self.new_runs()
        for layer, pool in enumerate(self._layers):
            self.allocate(layer, [runs], torch.ones(1, self.shape[1], dtype=torch.int32), pool.k)
        return runs

    def release(self, runs: Runs) -> None:
        """Free a sequence's slots; a layer that is more than half empty then gives its memory back."""
        self._tracked -= runs.tracked
        runs.tracked = False
        for layer, pool in enumerate(self._layers):
            self._release(layer, runs)
            if self._shrinks and pool.slots > 2 * pool.used:
                self.trim(layer)

    def track(self, runs: Runs, tracked: bool) -> None:
        """Keep from now on, or not, what a sequence's entries receive."""
        self._tracked += tracked - runs.tracked
        runs.tracked = tracked

    def trim(self, layer: int) -> None:
        """Compact a layer to the slots that are owned."""
        pool = self._layers[layer]
        if pool.free:
            self._rebuild(layer, pool.used, pool.k)

    def trim_all(self) -> None:
        """Compact every layer to the slots that are owned."""
        for layer in range(len(self._layers)):
            self.trim(layer)

    def copy(self, runs: Runs, slack: int, *, tracked: bool = False) -> Runs:
        """Runs of another sequence with the same entries, and `slack` free slots each; `tracked` keeps what they receive."""
        made, capacity = self.new_runs(tracked=tracked), runs.length.cpu() + slack
        try:
            with torch.inference_mode():
                for layer, pool in enumerate(self._layers):
                    self.allocate(layer, [made], capacity[layer : layer + 1], pool.k)
                    self._copy(layer, runs, made)
        except Exception:
            self.release(made)
            raise
        return made

    @torch.inference_mode()
    def resize(self, runs: Runs, capacity: torch.Tensor) -> None:
        """Move a sequence's entries to runs of another capacity, `int32 [layers, kv_heads]` on the CPU, none below its entries."""
        for layer, pool in enumerate(self._layers):
            old = Runs(runs.start.clone(), runs.length.clone(), runs.capacity.clone(), list(runs.blocks))
            del pool.owners[runs]
            pool.owners[old] = None
            self.allocate(layer, [runs], capacity[layer : layer + 1], pool.k)
            self._copy(layer, old, runs)
            self._release(layer, old)
        self.version += 1

    def arena(self, layer: int, start: torch.Tensor, length: torch.Tensor, capacity: torch.Tensor, *, tracked: bool) -> Arena:
        """Some sequences of a layer as the operators take them: `[batch, kv_heads]` each; shares memory."""
        pool = self._layers[layer]
        if tracked and pool.received is None:
            pool.received = torch.zeros(pool.slots, device=self.device)
            pool.queries = torch.zeros(pool.slots, dtype=torch.int32, device=self.device)
        received, queries = (pool.received, pool.queries) if tracked else (None, None)
        return Arena(pool.k, pool.v, pool.position, pool.segment, start, length, capacity, received, queries)

    def of(self, layer: int, runs: Sequence[Runs], *, tracked: bool = False) -> Arena:
        """The arena of some sequences; its lengths are a copy."""
        start, length, capacity = (torch.stack([getattr(one, name)[layer] for one in runs]) for name in ("start", "length", "capacity"))
        return self.arena(layer, start, length, capacity, tracked=tracked)

    def bytes(self) -> KVBytes:
        """What is allocated, owned and filled now. Reads lengths from the device."""
        allocated = owned = filled = 0
        for layer, pool in enumerate(self._layers):
            size = 2 * pool.k.shape[1] * pool.k.element_size() + 5 + (8 if pool.received is not None else 0)
            allocated += pool.slots * size
            owned += pool.used * size
            filled += sum(int(runs.length[layer].sum()) for runs in pool.owners) * size
        return KVBytes(allocated, owned, filled)

    def _copy(self, layer: int, old: Runs, new: Runs) -> None:
        """Entries of one sequence to the slots of another."""
        pool = self._layers[layer]
        new.length[layer] = old.length[layer]
        step = torch.arange(int(old.length[layer].max()), device=self.device)
        used = step < old.length[layer][:, None]
        source, target = ((one.start[layer][:, None] + step)[used].long() for one in (old, new))
        for column in (pool.k, pool.v, pool.position, pool.segment, pool.received, pool.queries):
            if column is not None:
                column[target] = column[source]

    def _release(self, layer: int, runs: Runs) -> None:
        pool, block = self._layers[layer], runs.blocks[layer]
        if block is not None:
            pool.give(*block)
            del pool.owners[runs]
            runs.blocks[layer] = None

    def _rebuild(self, layer: int, slots: int, like: torch.Tensor) -> None:
        """New tensors of `slots` slots, the owned blocks at their front."""
        pool = self._layers[layer]
        owners = sorted(pool.owners, key=lambda runs: runs.blocks[layer] or (0, 0))
        blocks = [runs.blocks[layer] or (0, 0) for runs in owners]
        source = torch.cat([torch.arange(first, first + size) for first, size in blocks] or [torch.arange(0)]).to(self.device)
        width = like.shape[-1]
        pool.k = _moved(pool.k, source, like.new_empty(slots, width))
        pool.v = _moved(pool.v, source, like.new_empty(slots, width))
        pool.position = _moved(pool.position, source, torch.full((slots,), -1, dtype=torch.int32, device=self.device))
        pool.segment = _moved(pool.segment, source, torch.zeros(slots, dtype=torch.uint8, device=self.device))
        if self._tracked and pool.received is not None and pool.queries is not None:
            pool.received = _moved(pool.received, source, torch.zeros(slots, device=self.device))
            pool.queries = _moved(pool.queries, source, torch.zeros(slots, dtype=torch.int32, device=self.device))
        else:
            pool.received = pool.queries = None
        at = 0
        for runs, (first, size) in zip(owners, blocks, strict=True):
            runs.start[layer] += at - first
            runs.blocks[layer] = (at, size)
            at += size
        pool.slots, pool.free = slots, [(at, slots - at)] if slots > at else []
        self.version += 1


def _moved(old: torch.Tensor, source: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if len(source):
        torch.index_select(old, 0, source, out=new[: len(source)])
    return new
