"""Traces come back as they were written, at the stated precisions; interrupted recordings go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from introspect.engine import Engine
from introspect.types import Budget
from introspect_probes.errors import FitError, TraceError
from introspect_probes.evaluation import evaluate
from introspect_probes.probe_set import load_probe_set
from introspect_probes.record import answer_cases, record
from introspect_probes.traces import HEAD_FIELDS, TraceWriter, head_dtype, manifest_of, read_traces
from introspect_probes.train import train
from introspect_probes.worlds.world import get_world


def test_a_trace_comes_back_as_it_was(engine: Engine, tmp_path: Path) -> None:
    cases = list(get_world("digits").cases(6, seed=3, pool="test", kinds={"describe": 1, "digit_at": 1}))
    written = answer_cases(engine, [(case, Budget("snapkv", ratio=0.3)) for case in cases])
    TraceWriter(tmp_path, manifest_of(engine.loaded)).write(written)
    for ours, theirs in zip(read_traces(tmp_path), written, strict=True):
        assert (ours.id, ours.answer, ours.correct, ours.claims) == (theirs.id, theirs.answer, theirs.correct, theirs.claims)
        assert ours.condition == theirs.condition == "snapkv@30%"
        assert [s.token_id for s in ours.steps] == [s.token_id for s in theirs.steps]
        assert ours.steps[-1].finish_reason == theirs.steps[-1].finish_reason
        np.testing.assert_array_equal(ours.prompt.retention, theirs.prompt.retention)
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            assert (a.heads is None) == (b.heads is None)
            if a.heads is None or b.heads is None:
                continue
            for name in HEAD_FIELDS:
                expected = getattr(b.heads, name).astype(head_dtype(name)).astype(np.float64)
                np.testing.assert_array_equal(getattr(a.heads, name).astype(np.float64), expected, err_msg=name)


def test_columns_have_the_stated_precisions(trace_folder: Path) -> None:
    schema = pq.read_schema(next(trace_folder.glob("part-*.parquet")))
    types = {name: str(schema.field(f"head_{name}").type.value_type) for name in HEAD_FIELDS}
    assert types["lse"] == types["mean_distance"] == types["windowed_distance"] == "float"
    assert types["argmax_position"] == types["retained"] == "int32"
    assert types["mass"] == types["entropy"] == "halffloat"


def test_recording_again_adds_nothing_and_more_cases_add_the_rest(engine: Engine, tmp_path: Path) -> None:
    world = get_world("digits")
    assert record(world.cases(3, seed=1, pool="test", kinds=["exists"]), engine, tmp_path) == 3
    assert record(world.cases(5, seed=1, pool="test", kinds=["exists"]), engine, tmp_path) == 2
    assert len({t.id for t in read_traces(tmp_path)}) == 5


def test_foreign_traces_are_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="introspect record"):
        list(read_traces(tmp_path))
    manifest = manifest_of(engine.loaded)
    TraceWriter(tmp_path, manifest)
    with pytest.raises(TraceError, match="another model"):
        TraceWriter(tmp_path, {**manifest, "fingerprint": "0" * 64, "model": "other"})
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "feature_schema": "old"}), encoding="utf-8")
    with pytest.raises(TraceError, match="feature schema old"):
        list(read_traces(tmp_path))


def test_traces_of_one_pool_are_named_not_a_traceback(engine: Engine, tmp_path: Path) -> None:
    record(get_world("digits").cases(4, seed=1, pool="test", kinds=["digit_at"]), engine, tmp_path / "test-pool")
    with pytest.raises(FitError, match="record cases of pool probe"):
        train([tmp_path / "test-pool"], tmp_path / "out", name="x")
    with pytest.raises(TraceError, match="give their folders too"):
        evaluate(load_probe_set(), [tmp_path / "test-pool"], tmp_path / "report")


def test_what_is_not_wanted_is_passed_over(trace_folder, traces):
    seen = []

    def wanted(entry):
        seen.append(entry)
        return entry.id.endswith("@full")

    found = list(read_traces(trace_folder, wanted=wanted))
    assert seen == [(t.id, t.pool, t.group) for t in traces]
    assert [t.id for t in found] == [t.id for t in traces if t.condition == "full"]
    assert found[0].steps[0].heads.lse.tolist() == traces[0].steps[0].heads.lse.tolist()
