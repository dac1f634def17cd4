"""A metacognitive checkpoint: what a few heads tell of an answer, in a few kilobytes of JSON.

One logistic regression over the statistics of 1, 2, 4 or 8 heads and the logits,
with its calibration. It names its features, so that anything that measures them can use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from introspect.types import PromptInfo
from introspect_kernels import feature_schema_hash
from introspect_probes.claim_probe import budget_features, is_reduced
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.features import LOGITS, PLACE, Shape, TokenFeatures, head_feature_names, kind_features
from introspect_probes.linear import BudgetedPlatt
from introspect_probes.worlds.claims import CLAIM_KINDS

FORMAT = "introspect-checkpoint/1"
Target = Literal["hallucination_risk", "confidence"]
OTHERS = (*(f"logits.{n}" for n in LOGITS), *(f"place.{n}" for n in PLACE), *(f"kind.{n}" for n in CLAIM_KINDS), "kept", "reduced")
"""Features beside the heads', in order; of the last token of what is scored."""


@dataclass(frozen=True)
class Checkpoint:
    """A probe of a few heads.

    Attributes:
        target: what it gives the probability of: that a claim is false, or that the answer is right.
        model: fingerprint of the model.
        shape: of the model.
        heads: `(layer, head)` that it reads.
        features: name, mean, scale and weight (nats of log-odds a standard deviation) of every feature with a weight.
        bias: of the logit.
        calibration: of the logit.
        quality: what it is worth, see `sparse`.
    """

    target: Target
    model: str
    shape: Shape
    heads: tuple[tuple[int, int], ...]
    features: tuple[tuple[str, float, float, float], ...]
    bias: float
    calibration: BudgetedPlatt
    quality: dict[str, Any]

    def token(self, features: TokenFeatures, kind: str, prompt: PromptInfo) -> float:
        """P(the claim of `kind` that a token decides is false); for checkpoints of hallucination risk."""
        return self._probability(feature_row(features.heads, features, kind, prompt), prompt)

    def answer(self, tokens: list[TokenFeatures], prompt: PromptInfo) -> float:
        """P(the answer is right) from its tokens so far; for checkpoints of confidence."""
        heads = np.mean([t.heads for t in tokens], axis=0)
        return self._probability(feature_row(heads, tokens[-1], "", prompt), prompt)

    def _probability(self, row: NDArray[np.floating], prompt: PromptInfo) -> float:
        places = {name: i for i, name in enumerate(feature_names(self.shape))}
        logit = self.bias
        for name, mean, scale, weight in self.features:
            logit += weight * float(np.clip((row[places[name]] - mean) / scale, -8, 8))
        return float(self.calibration(logit, is_reduced(prompt)))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        values = asdict(self) | {
            "format": FORMAT,
            "feature_schema": feature_schema_hash(),
            "calibration": self.calibration.as_dict(),
            "features": [[name, *(float(f"{v:.6g}") for v in values)] for name, *values in self.features],
        }
        path.write_text(json.dumps(values, separators=(",", ":")) + "\n", encoding="utf-8")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ProbesError: it is of another format.
        ProbeMismatchError: it was made under another feature schema.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.pop("format", None) != FORMAT:
        raise ProbesError(f"{path} is no checkpoint of format {FORMAT}; `introspect train` makes them")
    schema = values.pop("feature_schema")
    if schema != feature_schema_hash():
        raise ProbeMismatchError(f"{path} was made under feature schema {schema}, the engine measures {feature_schema_hash()}")
    return Checkpoint(
        **values
        | {
            "shape": Shape(**values["shape"]),
            "heads": tuple((layer, head) for layer, head in values["heads"]),
            "features": tuple((n, m, s, w) for n, m, s, w in values["features"]),
            "calibration": BudgetedPlatt.from_dict(values["calibration"]),
        }
    )


def feature_names(shape: Shape) -> tuple[str, ...]:
    """Names of a row's features, in order."""
    return (*head_feature_names(shape), *OTHERS)


def feature_row(heads: NDArray[np.floating], last: TokenFeatures, kind: str, prompt: PromptInfo) -> NDArray[np.float32]:
    """The row that `feature_names` names."""
    return np.concatenate([heads, last.logits, last.place, kind_features(kind), budget_features(prompt)]).astype(np.float32)
