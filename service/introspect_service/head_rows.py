"""Head statistics of one answer: kept as the engine tells them while it is made, and made small all at once when it ends.

Row by row that would take a sixth of what the event loop does for a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from introspect.types import HeadRow
from introspect_service.compact import DTYPES, Row, compact_row


class HeadRows(Sequence[Row]):
    """The rows of one answer; each reads in the precision of `compact.compact_row`, ended or not.

    Attributes:
        bytes: memory of their numbers when they are small; until the answer ends, who scores it holds the engine's anyway.
    """

    def __init__(self) -> None:
        self._coming: list[HeadRow] = []
        self._whole: Row = {}
        self._count = self.bytes = self._bytes_each = 0

    def add(self, heads: HeadRow) -> None:
        """Take the next row."""
        if not self._count:
            self._bytes_each = sum(getattr(heads, name).size * np.dtype(dtype).itemsize for name, dtype in DTYPES.items())
        self._coming.append(heads)
        self._count += 1
        self.bytes += self._bytes_each

    def settle(self) -> None:
        """No more will come: copy what is here into arrays of its own, and let go of the engine's, which other answers share."""
        if not self._coming:
            return
        self._whole = compact_row(HeadRow.joined(self._coming))
        self._coming = []

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @overload
    def __getitem__(self, which: int) -> Row: ...

    @overload
    def __getitem__(self, which: slice) -> list[Row]: ...

    def __getitem__(self, which: int | slice) -> Row | list[Row]:
        """Row `which`, or several."""
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(self._count))]
        if not -self._count <= which < self._count:
            raise IndexError(f"expected a row below {self._count}, got {which}")
        coming = self._coming  # taken once: another thread may read while this one settles
        return compact_row(coming[which]) if coming else {name: array[which] for name, array in self._whole.items()}

    def __iter__(self) -> Iterator[Row]:
        """All rows."""
        return (self[number] for number in range(self._count))
