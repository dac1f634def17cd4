"""A probe set cut down to the head statistics that it gives a weight to, for scoring token by token.

l1 leaves a probe some hundreds of its head features. A token's are those of the row that predicted it, of the row
that read it, and of what the budget kept of the prompt; so each row is read once, whether it predicts or reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect.types import HeadRow, PromptInfo
from introspect_kernels import Segment
from introspect_probes.features import Shape, head_feature_names, parse_head_feature
from introspect_probes.linear import LinearProbe
from introspect_probes.row_reader import RowReader

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NarrowProbe:
    """A linear probe on the head features that it has a weight for, and all of its others.

    Attributes:
        heads: where its head features stand in `NarrowReader.token`'s vector.
        mean: as in `LinearProbe`, of those and the others behind them.
        scale: likewise.
        weight: `float64 [outputs, features]`.
        bias: `[outputs]`.
    """

    heads: NDArray[np.intp]
    mean: Floats
    scale: Floats
    weight: NDArray[np.float64]
    bias: Floats

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits `[outputs]` of `[features]`: those of `LinearProbe.logits`."""
        standard = (features - self.mean) / self.scale
        np.minimum(standard, 8, out=standard)
        np.maximum(standard, -8, out=standard)
        return np.asarray(self.weight @ standard + self.bias)


class NarrowReader:
    """Reads of a token what any of several probes has a weight for.

    Args:
        shape: of the model.
        probes: by name; each begins with the features of `head_feature_names`.
        headless: by name; those that read no heads.
    """

    def __init__(self, shape: Shape, probes: dict[str, LinearProbe], headless: dict[str, LinearProbe]) -> None:
        names = head_feature_names(shape)
        used = {name: np.flatnonzero(np.any(probe.weight[:, : len(names)] != 0, axis=0)) for name, probe in probes.items()}
        parsed = {column: parse_head_feature(names[column], shape) for columns in used.values() for column in columns.tolist()}
        # What the budget kept at this row is read with the row; what it kept of the prefill's attention belongs to the prompt.
        rows = sorted({(what, flat) for _, what, flat in parsed.values() if not what.startswith("retention_")})
        self._fixed = sorted({(what, flat) for _, what, flat in parsed.values() if what.startswith("retention_")})
        self._rows = RowReader(shape, rows)
        at = {("producing", *column): number for number, column in enumerate(rows)}
        at |= {("budget", *column): number for number, column in enumerate(rows)}
        at |= {("reading", *column): len(rows) + number for number, column in enumerate(rows)}
        at |= {("budget", *column): 2 * len(rows) + number for number, column in enumerate(self._fixed)}
        self.probes = {
            name: _narrowed(probe, used[name], len(names), np.array([at[parsed[c]] for c in used[name].tolist()], dtype=np.intp))
            for name, probe in probes.items()
        }
        nothing = np.zeros(0, dtype=np.intp)
        self.probes |= {name: _narrowed(probe, nothing, 0, nothing) for name, probe in headless.items()}

    def row(self, row: HeadRow, position: int, prompt: PromptInfo) -> Floats:
        """One row's values, whichever role it plays; `position` is its query's token index."""
        return self._rows.read(row, position, prompt.logical)

    def fixed(self, prompt: PromptInfo) -> Floats:
        """What belongs to the prompt: the share of attention that survived; 1 where there was none."""
        kept = prompt.retention.reshape(-1, prompt.retention.shape[-1])
        values = [kept[flat, Segment[what.removeprefix("retention_").upper()]] for what, flat in self._fixed]
        return np.nan_to_num(np.array(values, dtype=np.float32), nan=1.0)

    @staticmethod
    def token(producing: Floats, reading: Floats, fixed: Floats) -> Floats:
        """A token's values, of which `NarrowProbe.heads` says which are whose."""
        return np.concatenate((producing, reading, fixed))


def _narrowed(probe: LinearProbe, used: NDArray[np.intp], count: int, heads: NDArray[np.intp]) -> NarrowProbe:
    columns = np.concatenate([used, np.arange(count, probe.weight.shape[1])])
    return NarrowProbe(heads, probe.mean[columns], probe.scale[columns], probe.weight[:, columns].astype(np.float64), probe.bias)
