"""The head statistics of one query: four arrays, as the kernels fill them, and each statistic by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float32]
Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class HeadRow:
    """The head statistics of one query, all layers: a row that is stored once.

    Statistics that are one number a head lie in two blocks and are read by name, `row.entropy`, as views
    `[layers, heads]`. NaN marks a real that does not exist, -1 a position. Rows of several queries may be one, every array
    with a leading `[rows]`; views have it too.

    Attributes:
        reals: `float32 [11, layers, heads]`, in the order of `introspect_kernels.REALS`.
        indices: `int32 [2, layers, heads]`, in the order of `introspect_kernels.INDICES`.
        mass: sum p per segment, `float32 [layers, heads, 6]`, in the order of `introspect_kernels.Segment`.
        retained: number of retained entries per KV head and segment, `int32 [layers, kv_heads, 6]`.
    """

    reals: Reals
    indices: Indices
    mass: Reals
    retained: Indices

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> HeadRow:
        """A row, or rows of several queries as one, of an array for each of `introspect_kernels.HeadStats`' fields.

        Args:
            arrays: by name, of any precision that becomes float32 or int32 without a change of kind.

        Raises:
            ValueError: a statistic is missing, or one is not known.
        """
        from introspect_kernels import INDICES, REALS, HeadStats  # here: it takes torch, which who only reads rows can do without

        if missing := [name for name in HeadStats._fields if name not in arrays]:
            raise ValueError(f"expected the head statistics {', '.join(HeadStats._fields)}; give {', '.join(missing)} too")
        if unknown := [name for name in arrays if name not in HeadStats._fields]:
            raise ValueError(f"expected the head statistics {', '.join(HeadStats._fields)}; leave out {', '.join(unknown)}")
        return cls(
            np.stack([arrays[name] for name in REALS], axis=-3, dtype=np.float32),
            np.stack([arrays[name] for name in INDICES], axis=-3, dtype=np.int32),
            arrays["mass"].astype(np.float32, casting="same_kind", copy=False),
            arrays["retained"].astype(np.int32, casting="same_kind", copy=False),
        )

    @classmethod
    def joined(cls, rows: Sequence[HeadRow]) -> HeadRow:
        """Rows of several queries as one; copies."""
        blocks = []
        for block in fields(cls):
            arrays = [getattr(row, block.name) for row in rows]  # one behind another: `np.stack` looks at each several times
            blocks.append(np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape))
        return cls(*blocks)

    def rows(self) -> list[HeadRow]:
        """Each row of several that are one, as views."""
        return list(map(HeadRow, self.reals, self.indices, self.mass, self.retained))

    @property
    def lse(self) -> Reals:
        """Log sum exp of the scaled scores, nats."""
        return self.reals[..., 0, :, :]

    @property
    def entropy(self) -> Reals:
        """-sum p ln p over the retained entries, nats."""
        return self.reals[..., 1, :, :]

    @property
    def sum_sq(self) -> Reals:
        """Sum p^2; its inverse is the effective support."""
        return self.reals[..., 2, :, :]

    @property
    def max_prob(self) -> Reals:
        """The largest p."""
        return self.reals[..., 3, :, :]

    @property
    def image_entropy(self) -> Reals:
        """Entropy within the image segment, renormalised, nats."""
        return self.reals[..., 4, :, :]

    @property
    def image_max(self) -> Reals:
        """Largest p within the image segment, renormalised."""
        return self.reals[..., 5, :, :]

    @property
    def image_output_share(self) -> Reals:
        """Norm of the image entries' part of the output over the whole output's norm."""
        return self.reals[..., 6, :, :]

    @property
    def self_mass(self) -> Reals:
        """The p of the query's own token."""
        return self.reals[..., 7, :, :]

    @property
    def previous_mass(self) -> Reals:
        """The p of the token before it."""
        return self.reals[..., 8, :, :]

    @property
    def mean_distance(self) -> Reals:
        """Sum p times how far back the entry is, tokens."""
        return self.reals[..., 9, :, :]

    @property
    def windowed_distance(self) -> Reals:
        """The same with distances cut at 10, tokens (WAAD, arXiv 2510.13554)."""
        return self.reals[..., 10, :, :]

    @property
    def argmax_position(self) -> Indices:
        """Token index of the largest p."""
        return self.indices[..., 0, :, :]

    @property
    def image_argmax_position(self) -> Indices:
        """Token index of the largest p within the image segment."""
        return self.indices[..., 1, :, :]
