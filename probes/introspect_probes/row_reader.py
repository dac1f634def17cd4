"""Reads chosen statistics of one row of heads into one vector: what is done for every token of a served answer.

Values are those of `features.head_features`. Where things stand is worked out once: for each row there is one
concatenation, one gather and one division, however many heads the model has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from introspect.types import HeadRow
from introspect_kernels import NUM_SEGMENTS, Segment
from introspect_probes.features import LAYER_STATISTICS, Shape, one_layer_statistic

_ACROSS = "across heads"
_WHOLE, _POSITION, _WINDOW, _LOGICAL = 0, 1, 2, 3
_RETAINED = _LOGICAL + NUM_SEGMENTS
_COUNTED = np.stack([np.ones(NUM_SEGMENTS), np.arange(NUM_SEGMENTS) == Segment.IMAGE], axis=1)
"""Takes entries by segment to all entries, and to those of the image."""


class RowReader:
    """Reads columns of one row.

    Args:
        shape: of the model.
        columns: statistic and flat index, as `features.parse_head_feature` has them; `retained_<segment>` too.
    """

    def __init__(self, shape: Shape, columns: Sequence[tuple[str, int]]) -> None:
        self._shape, self.count = shape, len(columns)
        self._layers = sorted({column for column in columns if column[0] in LAYER_STATISTICS})
        places = [self._place(name, flat) for name, flat in columns]
        self._fields = sorted({field for field, _ in places if field != _ACROSS} | {"retained"})
        begins = dict(zip(self._fields, np.cumsum([0, *(self._size(field) for field in self._fields)]), strict=False))
        begins[_ACROSS] = sum(self._size(field) for field in self._fields)  # behind all fields
        self._flats = np.array([begins[field] + offset for field, offset in places], dtype=np.intp)
        self._divided = np.array([self._divisor(name, flat) for name, flat in columns], dtype=np.intp)
        self._retained = slice(begins["retained"], begins["retained"] + self._size("retained"))

    def read(self, row: HeadRow, position: int, logical: NDArray[np.integer]) -> NDArray[np.float32]:
        """The columns' values, `[count]`; what does not exist is 0.

        Args:
            row: statistics of one query.
            position: token index of the query, which scales distances.
            logical: prompt entries per segment before eviction, `[6]`.
        """
        parts = [getattr(row, field).ravel() for field in self._fields]
        parts.append(
            [one_layer_statistic(name, row.mass[layer, :, Segment.IMAGE], row.argmax_position[layer]) for name, layer in self._layers]
        )
        flat = np.concatenate(parts, dtype=np.float64)
        values: NDArray[np.float64] = flat[self._flats]
        values /= self._divisors(flat[self._retained], position, logical)[self._divided]
        if not math.isfinite(values @ values):
            values[~(values > -np.inf)] = 0.0
        return values.astype(np.float32)

    def _divisors(self, retained: NDArray[np.float64], position: int, logical: NDArray[np.integer]) -> NDArray[np.float64]:
        plain = [1.0, max(1, position), 10.0, *np.maximum(logical, 1).tolist()]
        entries = retained.reshape(-1, NUM_SEGMENTS) @ _COUNTED
        return np.concatenate([plain, np.log(np.maximum(entries, 2)).ravel()])

    def _size(self, field: str) -> int:
        shape = self._shape
        if field == "retained":
            return shape.layers * shape.kv_heads * NUM_SEGMENTS
        return shape.layers * shape.heads * (NUM_SEGMENTS if field == "mass" else 1)

    def _place(self, name: str, flat: int) -> tuple[str, int]:
        """The field that holds a statistic, and where in it."""
        if name in LAYER_STATISTICS:
            return _ACROSS, self._layers.index((name, flat))
        field, _, segment = name.partition("_")
        if field in ("mass", "retained"):
            return field, flat * NUM_SEGMENTS + Segment[segment.upper()]
        return name, flat

    def _divisor(self, name: str, flat: int) -> int:
        """Which of `_divisors` a statistic is divided by."""
        shape = self._shape
        if name in ("entropy", "image_entropy"):
            layer, head = divmod(flat, shape.heads)
            kv_head = layer * shape.kv_heads + head // (shape.heads // shape.kv_heads)
            return _RETAINED + 2 * kv_head + (name == "image_entropy")
        if name.startswith("retained_"):
            return _LOGICAL + Segment[name.removeprefix("retained_").upper()]
        return {"mean_distance": _POSITION, "windowed_distance": _WINDOW}.get(name, _WHOLE)
