"""What the streams of `drift` were on answers that count as usual, kept with the probe set that is to be watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect_probes.errors import ProbesError


@dataclass(frozen=True)
class Reference:
    """Streams of the calibration part's answers, those under a whole cache apart from those under a reduced one.

    Attributes:
        streams: names, some of `drift.STREAMS`.
        whole: `float32 [answers, streams]` in random order; NaN where an answer has no value.
        reduced: likewise, of answers whose cache was reduced.
    """

    streams: tuple[str, ...]
    whole: NDArray[np.float32]
    reduced: NDArray[np.float32]

    def values(self, *, is_reduced: bool) -> dict[str, list[float]]:
        """Known values of each stream that has any."""
        rows = self.reduced if is_reduced else self.whole
        known = {name: column[np.isfinite(column)].tolist() for name, column in zip(self.streams, rows.T, strict=True)}
        return {name: values for name, values in known.items() if values}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Both arrays under `reference/`."""
        return {"reference/whole": np.ascontiguousarray(self.whole), "reference/reduced": np.ascontiguousarray(self.reduced)}

    @classmethod
    def from_arrays(cls, streams: tuple[str, ...], arrays: Mapping[str, NDArray[np.float32]]) -> Reference:
        """What `arrays` gave.

        Raises:
            ProbesError: the arrays do not have a column for each stream.
        """
        whole, reduced = arrays["reference/whole"], arrays["reference/reduced"]
        for rows in (whole, reduced):
            if rows.ndim != 2 or rows.shape[1] != len(streams):
                raise ProbesError(f"the reference of a probe set has {len(streams)} streams, but an array of shape {rows.shape}")
        return cls(streams, whole, reduced)
