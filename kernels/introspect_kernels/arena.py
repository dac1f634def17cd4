"""The KV arena: one layer's retained entries, ragged over sequences and KV heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from introspect_kernels.errors import ArenaFullError, KernelInputError


@dataclass
class Arena:
    """Keys and values of one layer in flat slots; each (sequence, KV head) owns one run of them.

    A run has a fixed capacity and is appended to in place, so that a decode
    step moves no memory. Positions ascend within a run. All tensors are contiguous.

    Attributes:
        k: `[slots, head_dim]`.
        v: `[slots, head_dim]`.
        position: `int32 [slots]`, token index of each entry in its sequence.
        segment: `uint8 [slots]`, see `Segment`.
        start: `int32 [batch, num_kv_heads]`, first slot of each run.
        length: `int32 [batch, num_kv_heads]`, entries in use.
        capacity: `int32 [batch, num_kv_heads]`, slots owned.
        received: `float32 [slots]` or None: the attention each entry got from later queries, summed over
            decode queries and over the heads of the query group; an entry's own query never counts (DESIGN.md).
        queries: `int32 [slots]`, present with `received`: how many query tokens that sum is over.
    """

    k: torch.Tensor
    v: torch.Tensor
    position: torch.Tensor
    segment: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    capacity: torch.Tensor
    received: torch.Tensor | None = None
    queries: torch.Tensor | None = None

    @classmethod
    def empty(cls, capacity: torch.Tensor, head_dim: int, dtype: torch.dtype, *, received: bool = False) -> Arena:
        """An arena without entries.

        Args:
            capacity: `int [batch, num_kv_heads]`, slots for each run.
            head_dim: size of a head.
            dtype: of keys and values.
            received: whether to keep the accumulators of received attention.

        Raises:
            KernelInputError: capacity is not a matrix of non-negative integers.
        """
        if capacity.dim() != 2 or capacity.is_floating_point() or bool((capacity < 0).any()):
            raise KernelInputError(f"capacity must be a matrix [batch, num_kv_heads] of integers >= 0, got {tuple(capacity.shape)}")
        sizes = capacity.to(torch.int32)
        ends = sizes.flatten().cumsum(0, dtype=torch.int32).view_as(sizes)
        slots = int(ends[-1, -1]) if sizes.numel() else 0
        device = capacity.device
        return cls(
            k=torch.zeros(slots, head_dim, dtype=dtype, device=device),
            v=torch.zeros(slots, head_dim, dtype=dtype, device=device),
            position=torch.full((slots,), -1, dtype=torch.int32, device=device),
            segment=torch.zeros(slots, dtype=torch.uint8, device=device),
            start=ends - sizes,
            length=torch.zeros_like(sizes),
            capacity=sizes,
            received=torch.zeros(slots, device=device) if received else None,
            queries=torch.zeros(slots, dtype=torch.int32, device=device) if received else None,
        )

    @classmethod
    def dense(cls, k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor, length: torch.Tensor | None = None) -> Arena:
        """A prefill cache read as an arena, without slack; shares memory where the cache is contiguous.

        Args:
            k: `[batch, num_kv_heads, tokens, head_dim]`, sequences padded on the right.
            v: likewise.
            segment: `uint8 [batch, tokens]`.
            length: `int [batch]`, tokens of each sequence; all of them without.

        Raises:
            KernelInputError: shapes do not fit each other.
        """
        if k.dim() != 4 or v.shape != k.shape or segment.shape != (k.shape[0], k.shape[2]):
            raise KernelInputError(
                "k and v must be [batch, num_kv_heads, tokens, head_dim] and segment [batch, tokens], "
                f"got {tuple(k.shape)}, {tuple(v.shape)}, {tuple(segment.shape)}"
            )
        batch, heads, tokens, head_dim = k.shape
        if length is not None and length.shape != (batch,):
            raise KernelInputError(f"length must be [{batch}], got {tuple(length.shape)}")
        device = k.device
        index = torch.arange(batch * heads, dtype=torch.int32, device=device).view(batch, heads)
        used = torch.full((batch,), tokens, device=device) if length is None else length
        return cls(
            k=k.reshape(-1, head_dim).contiguous(),
            v=v.reshape(-1, head_dim).contiguous(),
            position=torch.arange(tokens, dtype=torch.int32, device=device).repeat(batch * heads),
            segment=segment.to(torch.uint8)[:, None].expand(-1, heads, -1).reshape(-1).contiguous(),
            start=index * tokens,
            length=used.to(torch.int32)[:, None].repeat(1, heads),
            capacity=torch.full_like(index, tokens),
        )

    @property
    def num_kv_heads(self) -> int:
        """KV heads of each sequence."""
        return self.start.shape[1]

    def append(self, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, segment: torch.Tensor, *, check_room: bool = True) -> None:
        """Append one entry to every run.

        Args:
            k: `[batch, num_kv_heads, head_dim]`.
            v: `[batch, num_kv_heads, head_dim]`.
            position: `int [batch]`, the token's index in its sequence.
            segment: `uint8 [batch]`, where each token came from.
            check_room: reads the lengths on the host. A CUDA graph cannot, and turns it off: then the caller
                answers for there being room.

        Raises:
            KernelInputError: wrong shapes.
            ArenaFullError: a run has no slot left.
        """
        expected = (*self.start.shape, self.k.shape[1])
        if k.shape != expected or v.shape != expected or position.shape != expected[:1] or segment.shape != expected[:1]:
            raise KernelInputError(
                f"expected k and v {expected}, position and segment {expected[:1]}, "
                f"got {tuple(k.shape)}, {tuple(v.shape)}, {tuple(position.shape)}, {tuple(segment.shape)}"
            )
        if check_room and bool((self.length >= self.capacity).any()):
            raise ArenaFullError(f"a run of capacity {int(self.capacity.min())} is full; plan for longer answers")
        slots = (self.start + self.length).flatten().long()
        self.k[slots] = k.flatten(0, 1).to(self.k.dtype)
        self.v[slots] = v.flatten(0, 1).to(self.v.dtype)
        self.position[slots] = position.to(torch.int32).repeat_interleave(self.num_kv_heads)
        self.segment[slots] = segment.to(torch.uint8).repeat_interleave(self.num_kv_heads)
        if self.received is not None and self.queries is not None:
            self.received[slots], self.queries[slots] = 0.0, 0
        self.length += 1

    def fill(self, row: int, head: int, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, segment: torch.Tensor) -> None:
        """Set the entries of one run.

        Args:
            row: sequence.
            head: KV head.
            k: `[entries, head_dim]`.
            v: `[entries, head_dim]`.
            position: `int [entries]`, ascending.
            segment: `uint8 [entries]`.

        Raises:
            ArenaFullError: more entries than the run's capacity.
        """
        count, capacity = k.shape[0], int(self.capacity[row, head])
        if count > capacity:
            raise ArenaFullError(f"run ({row}, {head}) has capacity {capacity}, got {count} entries")
        first = int(self.start[row, head])
        run = slice(first, first + count)
        self.k[run], self.v[run] = k.to(self.k.dtype), v.to(self.v.dtype)
        self.position[run], self.segment[run] = position.to(torch.int32), segment.to(torch.uint8)
        if self.received is not None and self.queries is not None:
            self.received[run], self.queries[run] = 0.0, 0
        self.length[row, head] = count

    def select(self, rows: torch.Tensor) -> Arena:
        """The arena of some sequences only, sharing the slots; the parent must not be appended to any more."""
        return replace(self, start=self.start[rows], length=self.length[rows].clone(), capacity=self.capacity[rows])

    def gather(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs padded to the longest one.

        Returns:
            `k`, `v [batch, num_kv_heads, n, head_dim]`, `position`, `segment [batch, num_kv_heads, n]` and
            `valid`, bool of the same shape; padding repeats some entry and is not valid. Views where all
            runs lie evenly in the slots.
        """
        batch, heads = self.start.shape
        longest = int(self.length.max()) if self.length.numel() else 0
        valid = torch.arange(longest, device=self.k.device) < self.length[..., None]
        stride = int(self.capacity[0, 0]) if self.capacity.numel() else 0
        even = torch.arange(batch * heads, dtype=torch.int32, device=self.k.device).view(batch, heads) * stride
        if longest and torch.equal(self.start, even) and batch * heads * stride == self.k.shape[0]:
            shape = (batch, heads, stride)
            return (
                self.k.view(*shape, -1)[:, :, :longest],
                self.v.view(*shape, -1)[:, :, :longest],
                self.position.view(shape)[:, :, :longest],
                self.segment.view(shape)[:, :, :longest],
                valid,
            )
        slots = (self.start[..., None] + torch.arange(longest, device=self.k.device)).clamp(max=max(0, self.k.shape[0] - 1))
        slots = torch.where(valid, slots, self.start[..., None].clamp(max=max(0, self.k.shape[0] - 1))).long()
        return self.k[slots], self.v[slots], self.position[slots], self.segment[slots], valid
