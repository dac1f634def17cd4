"""Visual-head scores as a file: `visual_heads.json`, found beside the model or given by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.errors import HeadScoresError, RequestError
from introspect.loading import LoadedModel

FORMAT = "introspect-heads/1"


@dataclass(frozen=True)
class VisualHeads:
    """Scores of all query heads of one model, and where they come from.

    Attributes:
        scores: `float64 [layers, heads]`, not negative, with the sum 1.
        fingerprint: of the model they were measured on.
        facts: everything else that the file says: cases, stability, provenance.
        hit_rates: `float64 [layers, heads]`, the share of scored tokens whose evidence each head looked at most; `None` where
            scores were read from a file, which says it of the best head only.
    """

    scores: NDArray[np.float64]
    fingerprint: str
    facts: dict[str, Any]
    hit_rates: NDArray[np.float64] | None = None

    def per_kv_head(self, num_kv_heads: int) -> NDArray[np.float64]:
        """`[layers, num_kv_heads]`: sums over the query heads that share a KV head (SparseMM, appendix A.1)."""
        layers, heads = self.scores.shape
        summed: NDArray[np.float64] = self.scores.reshape(layers, num_kv_heads, heads // num_kv_heads).sum(-1)
        return summed

    def save(self, path: Path) -> None:
        """Write the file."""
        record = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "scores": [[round(float(score), 8) for score in layer] for layer in self.scores],
            **self.facts,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_one_layer_a_line(record), encoding="utf-8")


def read_visual_heads(path: Path, loaded: LoadedModel) -> VisualHeads:
    """Read a file of scores and make sure that they are this model's.

    Raises:
        HeadScoresError: the file cannot be read, is of another format or shape, or was measured on another model.
    """
    again = "make it again with `introspect score-heads`"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise HeadScoresError(f"cannot read visual-head scores from {path}: {problem}") from problem
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise HeadScoresError(f"{path} is of format {found!r}, expected {FORMAT!r}; {again}")
    if record.get("fingerprint") != loaded.fingerprint:
        raise HeadScoresError(
            f"{path} was measured on the model {str(record.get('fingerprint'))[:12]}, this one is {loaded.fingerprint[:12]}; {again}"
        )
    try:
        scores = np.asarray(record.get("scores"), dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise HeadScoresError(f"{path}: scores must be numbers [layers][heads]; {again}") from problem
    if scores.shape != (loaded.num_layers, loaded.num_heads) or not np.isfinite(scores).all() or (scores < 0).any():
        raise HeadScoresError(
            f"{path}: expected finite scores >= 0 for {loaded.num_layers} layers of {loaded.num_heads} heads, got {scores.shape}; {again}"
        )
    facts = {key: value for key, value in record.items() if key not in ("format", "fingerprint", "scores")}
    return VisualHeads(scores, str(record["fingerprint"]), facts)


def kv_head_scores(loaded: LoadedModel) -> NDArray[np.float64]:
    """`float64 [layers, kv_heads]`: the scores of a model's KV heads, from the file it was loaded with.

    Raises:
        RequestError: it has none, or the file is not this model's.
    """
    if loaded.heads_path is None:
        raise RequestError(
            f"the model {loaded.name!r} has no visual-head scores beside it; make them with "
            f"`introspect score-heads --model {loaded.name} --out heads.json` and give them with `--heads heads.json`"
        )
    try:
        return read_visual_heads(loaded.heads_path, loaded).per_kv_head(loaded.num_kv_heads)
    except HeadScoresError as problem:
        raise RequestError(str(problem)) from problem


def _one_layer_a_line(record: dict[str, Any]) -> str:
    """JSON that a person can read: indented, but each layer's scores on one line."""
    scores = record.pop("scores")
    marker = "@scores@"
    text = json.dumps({**{k: record[k] for k in ("format", "fingerprint")}, "scores": marker, **record}, indent=1)
    lines = ",\n  ".join(json.dumps(layer) for layer in scores)
    return text.replace(f'"{marker}"', f"[\n  {lines}\n ]") + "\n"
