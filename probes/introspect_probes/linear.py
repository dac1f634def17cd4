"""A fitted linear probe as arrays: what is served, without scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def sigmoid(logit: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logit, dtype=np.float64), -60, 60)))


def probability(logit: float) -> float:
    """The logistic function of one number."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on standardised features.

    Attributes:
        mean: `[features]`.
        scale: `[features]`, 1 where a feature never varied.
        weight: `[outputs, features]`, on standardised features; one output for two classes.
        bias: `[outputs]`.
    """

    mean: Array
    scale: Array
    weight: Array
    bias: Array

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits `[..., outputs]` of `features [..., features]`; values far outside the fit are clipped at 8 deviations."""
        standard = np.clip((features - self.mean) / self.scale, -8, 8)
        result: NDArray[np.float64] = standard.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return result

    def arrays(self, name: str) -> dict[str, Array]:
        """The probe's arrays under `name/`."""
        return {f"{name}/{key}": np.ascontiguousarray(getattr(self, key)) for key in ("mean", "scale", "weight", "bias")}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, Array]) -> LinearProbe:
        """The probe that `arrays(name)` gave."""
        return cls(**{key: arrays[f"{name}/{key}"] for key in ("mean", "scale", "weight", "bias")})


@dataclass(frozen=True)
class BudgetedProbe:
    """Two probes of two classes: one for answers under the whole cache, one for those whose cache was reduced.

    Once evidence may have been evicted, other statistics tell what is false.
    """

    whole: LinearProbe
    reduced: LinearProbe

    @classmethod
    def one(cls, probe: LinearProbe) -> BudgetedProbe:
        """One probe for both."""
        return cls(probe, probe)

    def logits(self, features: NDArray[np.floating], is_reduced: NDArray[np.bool_] | bool) -> NDArray[np.float64]:
        """Logits `[rows]` of `features [rows, features]`, by whether each one's cache was reduced."""
        if self.whole is self.reduced:
            return self.whole.logits(features)[..., 0]
        return np.where(is_reduced, self.reduced.logits(features)[..., 0], self.whole.logits(features)[..., 0])

    def chosen(self, *, is_reduced: bool) -> LinearProbe:
        """The probe of one cache."""
        return self.reduced if is_reduced else self.whole

    def arrays(self, name: str) -> dict[str, Array]:
        """The arrays of both, under `name/whole/` and `name/reduced/`, or of the one that is both, under `name/`."""
        if self.whole is self.reduced:
            return self.whole.arrays(name)
        return {**self.whole.arrays(f"{name}/whole"), **self.reduced.arrays(f"{name}/reduced")}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, Array]) -> BudgetedProbe:
        """The probes that `arrays(name)` gave."""
        if f"{name}/weight" in arrays:
            return cls.one(LinearProbe.from_arrays(name, arrays))
        return cls(LinearProbe.from_arrays(f"{name}/whole", arrays), LinearProbe.from_arrays(f"{name}/reduced", arrays))


@dataclass(frozen=True)
class Platt:
    """Sigmoid calibration, `p = 1 / (1 + exp(a * logit + b))` (Platt 1999)."""

    a: float
    b: float

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Platt:
        """The calibration that `__dict__` gave."""
        return cls(float(values["a"]), float(values["b"]))

    def __call__(self, logit: NDArray[np.floating] | float) -> NDArray[np.float64]:
        """Calibrated probabilities of logits."""
        return sigmoid(-(self.a * np.asarray(logit, dtype=np.float64) + self.b))


@dataclass(frozen=True)
class BudgetedPlatt:
    """Two sigmoid calibrations: one where the whole cache was kept, one where it was not.

    The same logit means another probability once evidence may have been evicted.
    """

    whole: Platt
    reduced: Platt

    def __call__(self, logit: NDArray[np.floating] | float, is_reduced: NDArray[np.bool_] | bool) -> NDArray[np.float64]:
        """Calibrated probabilities of logits, by whether each one's cache was reduced."""
        return np.where(is_reduced, self.reduced(logit), self.whole(logit))

    def chosen(self, *, is_reduced: bool) -> Platt:
        """The calibration of one cache."""
        return self.reduced if is_reduced else self.whole

    def as_dict(self) -> dict[str, dict[str, float]]:
        """For the manifest."""
        return {"whole": dict(self.whole.__dict__), "reduced": dict(self.reduced.__dict__)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, float]]) -> BudgetedPlatt:
        """What `as_dict` gave."""
        return cls(Platt.from_dict(values["whole"]), Platt.from_dict(values["reduced"]))
