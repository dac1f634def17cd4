"""Tokens' features on disk while probes are fitted: a fit reads them answer by answer, and all together they can exceed memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from introspect_probes.features import TokenFeatures


class TokenStore:
    """A temporary file (in `TMPDIR`) of token features, removed when the store is closed."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> TokenStore:
        """The store itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the file; what was kept in it can be read no more."""
        self._file.close()

    def keep(self, tokens: Sequence[TokenFeatures]) -> StoredTokens:
        """The same tokens, at least one of them, their features on disk."""
        rows = self.keep_rows(np.stack([np.concatenate([t.heads, t.logits, t.place]) for t in tokens]).astype(np.float32))
        first = tokens[0]
        return StoredTokens(self, rows.offset, rows.length, (len(first.heads), len(first.logits), len(first.place)))

    def keep_rows(self, rows: NDArray[np.float32]) -> StoredRows:
        """The same rows `[rows, width]` on disk."""
        offset = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        return StoredRows(self, offset, *rows.shape)

    def read(self, offset: int, rows: int, width: int) -> NDArray[np.float32]:
        """`[rows, width]` from a place in the file."""
        self._file.seek(offset)
        return np.frombuffer(self._file.read(rows * width * 4), dtype=np.float32).reshape(rows, width)


@dataclass(frozen=True)
class StoredRows:
    """Rows in a `TokenStore`, each read whenever it is asked for: where, in bytes, how many, and how wide."""

    store: TokenStore
    offset: int
    length: int
    width: int

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """One row, `[width]`."""
        row: NDArray[np.float32] = self.store.read(self.offset + range(self.length)[index] * self.width * 4, 1, self.width)[0]
        return row


@dataclass(frozen=True)
class StoredTokens(Sequence[TokenFeatures]):
    """The tokens of one answer, read from a `TokenStore` whenever they are asked for.

    Attributes:
        store: which holds them.
        offset: of the first one, in bytes.
        length: how many tokens.
        widths: features of each block, in the order of `TokenFeatures`.
    """

    store: TokenStore
    offset: int
    length: int
    widths: tuple[int, int, int]

    def __len__(self) -> int:
        """Number of tokens."""
        return self.length

    @overload
    def __getitem__(self, index: int) -> TokenFeatures: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenFeatures]: ...
    def __getitem__(self, index: int | slice) -> TokenFeatures | list[TokenFeatures]:
        """One token, or several in one read."""
        chosen = range(self.length)[index]
        if isinstance(chosen, int):
            return self._read(chosen, 1)[0]
        if not len(chosen):
            return []
        first, last = min(chosen), max(chosen)
        found = self._read(first, last - first + 1)
        return [found[i - first] for i in chosen]

    def _read(self, first: int, rows: int) -> list[TokenFeatures]:
        width, (heads, logits, _) = sum(self.widths), self.widths
        values = self.store.read(self.offset + first * width * 4, rows, width)
        return [TokenFeatures(row[:heads], row[heads : heads + logits], row[heads + logits :]) for row in values]
