"""Traces on disk: a folder with `manifest.json` and `part-*.parquet`, one row an answer.

Statistics of the heads are stored once per query row: row t is the producing
row of token t and the reading row of token t - 1. Log-sum-exp and distances
are fp32, indices int32, everything else fp16; -1 marks an absent index and NaN
an absent value. What tokens received from later ones (`head_influence`, tokens by layers by KV heads) is there where the
requests asked for it; older traces do not have the column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from introspect.loading import LoadedModel
from introspect.provenance import provenance
from introspect.types import HeadRow, LogitStats, PromptInfo, StepTrace
from introspect_kernels import HeadStats, feature_schema_hash
from introspect_probes.errors import TraceError
from introspect_probes.matching import DEFAULT_MATCHER

MANIFEST = "manifest.json"
UNKNOWN, TRUE, FALSE = -1, 0, 1
"""Labels of a claim: not judged, true, false."""

_FP32 = ("lse", "mean_distance", "windowed_distance")
_INT32 = ("argmax_position", "image_argmax_position", "retained")
HEAD_FIELDS = HeadStats._fields


def head_dtype(name: str) -> type[np.generic]:
    """The precision in which one head statistic is stored."""
    return np.float32 if name in _FP32 else np.int32 if name in _INT32 else np.float16


@dataclass(frozen=True)
class ClaimLabel:
    """One claim of a recorded answer.

    Attributes:
        token: index of the token that decides it.
        start: offset of its first character in the answer.
        end: offset behind its last character.
        kind: what it is about.
        label: -1 unknown, 0 true, 1 false.
        evidence: cells that show the truth.
        shifts: mean fall of the token's log-probability (nats) under each intervention; empty where none was made.
        halves: the same from two disjoint halves of the donors, for the labels' own reliability.
    """

    token: int
    start: int
    end: int
    kind: str
    label: int
    evidence: tuple[int, ...] = ()
    shifts: dict[str, float] | None = None
    halves: tuple[dict[str, float], dict[str, float]] | None = None


@dataclass(frozen=True)
class Trace:
    """One generation with its statistics and labels.

    Attributes:
        id: the case's id and the condition, unique in a folder.
        case_id: the case's id.
        group: cases of one group are never split.
        pool: digit pool, where the case comes from a world.
        kind: the question's template.
        source: where the truth is to be had.
        prior: what learned priors say about the truth.
        question: what was asked.
        answer: what was generated.
        correct: 1 right, 0 wrong, -1 unknown.
        prompt: what the engine told of the prompt.
        steps: the generated tokens' steps, the closing one included.
        claims: its claims with labels.
        picture: the picture as a small PNG, to show beside the answer; `None` where there was none, or it was not kept.
        expected: the usual accepted answer, where it is known.
        hidden: `float16 [queries, layers, width]`, hidden states of the rows that `steps` carry; `None` where they were not kept.
        agreement: share of sampled answers that equal this one; `None` where none were drawn.
    """

    id: str
    case_id: str
    group: str
    pool: str | None
    kind: str
    source: str
    prior: str
    question: str
    answer: str
    correct: int
    prompt: PromptInfo
    steps: tuple[StepTrace, ...]
    claims: tuple[ClaimLabel, ...]
    picture: bytes | None = None
    expected: str | None = None
    hidden: NDArray[np.float16] | None = None
    agreement: float | None = None

    @property
    def condition(self) -> str:
        """Policy and nominal budget, such as `snapkv@20%`."""
        policy, _, amount = self.id.rpartition("@")[2].partition("-")
        if not amount:
            return policy
        return f"{policy}@{float(amount):.0%}" if float(amount) <= 1 else f"{policy}@{amount}"


def manifest_of(loaded: LoadedModel, **facts: Any) -> dict[str, Any]:
    """The manifest of traces made with a model."""
    return {
        "format": "introspect-traces/1",
        "feature_schema": feature_schema_hash(),
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "shape": {"layers": loaded.num_layers, "heads": loaded.num_heads, "kv_heads": loaded.num_kv_heads},
        "provenance": provenance(),
        **facts,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a trace folder.

    Raises:
        TraceError: there is none, or it is of another schema.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise TraceError(f"{folder} holds no traces: {MANIFEST} is missing; make them with `introspect record`")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("feature_schema") != feature_schema_hash():
        raise TraceError(
            f"{folder} was recorded under feature schema {manifest.get('feature_schema')}, this version reads {feature_schema_hash()}; "
            "record again"
        )
    return manifest


def matcher_of(manifest: dict[str, Any]) -> str:
    """The matcher by which the answers of a folder were judged; see `matching`."""
    return str(manifest.get("matcher", DEFAULT_MATCHER))


class TraceWriter:
    """Writes traces part by part; a folder of the same model and schema is appended to.

    Args:
        folder: where to write.
        manifest: see `manifest_of`.

    Raises:
        TraceError: the folder holds traces of another model, schema or matcher.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST
        if path.exists():
            found = read_manifest(folder)
            if found["fingerprint"] != manifest["fingerprint"]:
                raise TraceError(f"{folder} holds traces of another model ({found['model']}); give another folder")
            if matcher_of(found) != matcher_of(manifest):
                raise TraceError(
                    f"{folder} holds answers judged by the matcher {matcher_of(found)}, not {matcher_of(manifest)}; give another folder"
                )
        else:
            path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def recorded(self) -> set[str]:
        """Ids of the traces that are there already."""
        parts = sorted(self._folder.glob("part-*.parquet"))
        return {i for part in parts for i in pq.read_table(part, columns=["id"])["id"].to_pylist()}

    def write(self, traces: Iterable[Trace]) -> None:
        """Write one part, whole or not at all."""
        table = pa.Table.from_pylist([_row(trace) for trace in traces], schema=_SCHEMA)
        if not table.num_rows:
            return
        number = len(list(self._folder.glob("part-*.parquet")))
        path = self._folder / f"part-{number:05d}.parquet"
        pq.write_table(table, path.with_suffix(".tmp"), compression="zstd")
        path.with_suffix(".tmp").replace(path)


class Entry(NamedTuple):
    """By what a trace is chosen before it is read: see `Trace`."""

    id: str
    pool: str | None
    group: str


Wanted = Callable[[Entry], bool]


def read_traces(folder: Path, *, with_heads: bool = True, wanted: Wanted | None = None) -> Iterator[Trace]:
    """All traces of a folder, or those that are wanted.

    Args:
        folder: where they are.
        with_heads: without, the steps carry no head statistics and reading is quick.
        wanted: which; the others are passed over without being read.

    Raises:
        TraceError: there are none.
    """
    shape = read_manifest(folder)["shape"]
    columns = [f.name for f in _SCHEMA if with_heads or not f.name.startswith("head_")]
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise TraceError(f"{folder} holds a manifest but no traces")
    for part in parts:
        file = pq.ParquetFile(part)
        missing = set(columns) - set(file.schema_arrow.names) - _LATER  # which older traces do not have
        if missing:
            raise TraceError(f"{part} is of another schema: without the column {min(missing)}; record it again in a folder of its own")
        for batch in file.iter_batches(batch_size=256, columns=[c for c in columns if c in file.schema_arrow.names]):
            if wanted is not None:
                entries = zip(*(batch[name].to_pylist() for name in Entry._fields), strict=True)
                batch = batch.filter(pa.array([wanted(Entry(*entry)) for entry in entries], pa.bool_()))
            for row in batch.to_pylist() if not with_heads else _rows(batch):
                yield _trace(row, shape)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch with the long head columns as numpy, which `to_pylist` would spell out."""
    head_columns = [name for name in batch.schema.names if name.startswith("head_")]
    light = batch.drop_columns(head_columns).to_pylist()
    for index, row in enumerate(light):
        cells = {name: batch.column(name)[index] for name in head_columns}
        yield row | {name: cell.values.to_numpy(zero_copy_only=False) if cell.is_valid else None for name, cell in cells.items()}


_LATER = {"picture", "expected", "agreement", "head_hidden", "head_influence"}
_CLAIM = pa.struct(
    [
        ("token", pa.int32()), ("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string()), ("label", pa.int8()),
        ("evidence", pa.list_(pa.int16())), ("shifts", pa.string()), ("halves", pa.string()),
    ]
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        *[pa.field(n, pa.string()) for n in ("id", "case_id", "group", "pool", "kind", "source", "prior", "question", "answer")],
        ("correct", pa.int8()),
        ("policy", pa.string()), ("nominal", pa.float32()), ("effective", pa.float32()), ("prompt_tokens", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())), ("segments", pa.list_(pa.uint8())), ("logical", pa.list_(pa.int32())),
        ("retention", pa.list_(pa.float32())), ("image_embedding", pa.list_(pa.float32())),
        ("tokens", pa.list_(pa.int32())), ("positions", pa.list_(pa.int32())), ("texts", pa.list_(pa.string())),
        ("special", pa.list_(pa.bool_())), ("logprob", pa.list_(pa.float32())), ("logit_entropy", pa.list_(pa.float32())),
        ("margin", pa.list_(pa.float32())), ("top_ids", pa.list_(pa.int32())), ("top_logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()), ("claims", pa.list_(_CLAIM)), ("picture", pa.binary()),
        ("expected", pa.string()), ("agreement", pa.float32()), ("head_hidden", pa.list_(pa.float16())),
        ("head_influence", pa.list_(pa.float16())),
        *[pa.field(f"head_{name}", pa.list_(pa.from_numpy_dtype(head_dtype(name)))) for name in HEAD_FIELDS],
    ]
)  # fmt: skip


def _row(trace: Trace) -> dict[str, Any]:
    prompt, budget, influence = trace.prompt, trace.prompt.budget, trace.steps[-1].influence
    tokens = [s for s in trace.steps if s.logits is not None]
    heads = [s.heads for s in trace.steps if s.heads is not None]
    logits = [s.logits for s in tokens if s.logits is not None]
    row: dict[str, Any] = {
        name: getattr(trace, name)
        for name in ("id", "case_id", "group", "pool", "kind", "source", "prior", "question", "answer", "correct")
    }
    row |= {
        "policy": budget.policy, "nominal": budget.nominal, "effective": budget.effective, "prompt_tokens": budget.prompt_tokens,
        "prompt_ids": prompt.token_ids.tolist(), "segments": prompt.segments.tolist(), "logical": prompt.logical.tolist(),
        "retention": prompt.retention.ravel().tolist(),
        "image_embedding": None if prompt.image_embedding is None else prompt.image_embedding.tolist(),
        "tokens": [s.token_id for s in tokens], "positions": [s.position for s in tokens], "texts": [s.text for s in tokens],
        "special": [s.is_special for s in tokens], "logprob": [g.logprob for g in logits], "logit_entropy": [g.entropy for g in logits],
        "margin": [g.margin for g in logits], "top_ids": [i for g in logits for i in g.top_ids],
        "top_logprobs": [p for g in logits for p in g.top_logprobs], "finish_reason": trace.steps[-1].finish_reason,
        "picture": trace.picture,
        "expected": trace.expected,
        "agreement": trace.agreement,
        "head_hidden": None if trace.hidden is None else trace.hidden.astype(np.float16).ravel(),
        "head_influence": None if influence is None else influence.astype(np.float16).ravel(),
        "claims": [
            {
                "token": c.token, "start": c.start, "end": c.end, "kind": c.kind, "label": c.label, "evidence": list(c.evidence),
                "shifts": None if c.shifts is None else json.dumps(c.shifts), "halves": None if c.halves is None else json.dumps(c.halves),
            }
            for c in trace.claims
        ],
    }  # fmt: skip
    return row | {f"head_{name}": np.stack([getattr(h, name) for h in heads]).astype(head_dtype(name)).ravel() for name in HEAD_FIELDS}


def _trace(row: dict[str, Any], shape: dict[str, int]) -> Trace:
    from introspect.types import EffectiveBudget

    prompt = PromptInfo(
        request_id=row["id"],
        question=row["question"],
        token_ids=np.array(row["prompt_ids"], dtype=np.int64),
        segments=np.array(row["segments"], dtype=np.uint8),
        image_embedding=None if row["image_embedding"] is None else np.array(row["image_embedding"], dtype=np.float32),
        image_grids=(),
        budget=EffectiveBudget(row["policy"], row["nominal"], row["effective"], row["prompt_tokens"]),
        logical=np.array(row["logical"], dtype=np.int32),
        retention=np.array(row["retention"], dtype=np.float32).reshape(shape["layers"], shape["kv_heads"], -1),
    )
    claims = tuple(
        ClaimLabel(
            **{k: c[k] for k in ("token", "start", "end", "kind", "label")},
            evidence=tuple(c["evidence"]),
            shifts=json.loads(c["shifts"]) if c["shifts"] else None,
            halves=tuple(json.loads(c["halves"])) if c["halves"] else None,
        )
        for c in row["claims"]
    )
    names = ("id", "case_id", "group", "pool", "kind", "source", "prior", "question", "answer", "correct")
    steps = tuple(_steps(row, prompt, shape))
    hidden, queries = row.get("head_hidden"), sum(step.heads is not None for step in steps)
    return Trace(
        **{n: row[n] for n in names},
        prompt=prompt,
        steps=steps,
        claims=claims,
        picture=row.get("picture"),
        expected=row.get("expected"),
        hidden=None if hidden is None or not queries else hidden.reshape(queries, shape["layers"], -1),
        agreement=row.get("agreement"),
    )


def _steps(row: dict[str, Any], prompt: PromptInfo, shape: dict[str, int]) -> Iterator[StepTrace]:
    heads = _head_rows(row, shape)
    count = len(row["tokens"])
    width = len(row["top_ids"]) // max(1, count)
    for t in range(count):
        candidates = slice(t * width, (t + 1) * width)
        logits = LogitStats(
            row["logprob"][t],
            row["logit_entropy"][t],
            row["margin"][t],
            tuple(row["top_ids"][candidates]),
            tuple(row["top_logprobs"][candidates]),
        )
        yield StepTrace(
            prompt, t, row["positions"][t], row["tokens"][t], row["texts"][t], row["special"][t], logits, heads[t] if heads else None
        )
    closing = heads[count] if len(heads) > count else None
    found = row.get("head_influence")
    influence = None if found is None else found.astype(np.float32).reshape(count, shape["layers"], shape["kv_heads"])
    yield StepTrace(prompt, count, row["positions"][-1] + 1, -1, "", True, None, closing, row["finish_reason"], influence)


def _head_rows(row: dict[str, Any], shape: dict[str, int]) -> list[HeadRow]:
    if "head_lse" not in row:
        return []
    layers, heads, kv_heads = shape["layers"], shape["heads"], shape["kv_heads"]
    sizes: dict[str, tuple[int, ...]] = {"mass": (layers, heads, 6), "retained": (layers, kv_heads, 6)}
    arrays = {name: row[f"head_{name}"].reshape(-1, *sizes.get(name, (layers, heads))) for name in HEAD_FIELDS}
    return HeadRow.of(arrays).rows()
