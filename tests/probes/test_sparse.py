"""Few heads: the right ones are kept, the cost is told, and the file says the same as what was fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from introspect_probes.checkpoint import feature_names, feature_row, load_checkpoint
from introspect_probes.dataset import load_table
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.features import Shape, head_feature_names
from introspect_probes.sparse import Rows, answer_rows, claim_rows, fit_sparse, kept_columns
from introspect_probes.traces import Trace

SHAPE = Shape(layers=2, heads=4, kv_heads=2)


def planted(rows: int, seed: int) -> Rows:
    """Labels that depend on head 2 of layer 1 a lot, on head 0 of layer 0 a little, and on nothing else."""
    rng = np.random.default_rng(seed)
    names = feature_names(SHAPE)
    features = rng.standard_normal((rows, len(names))).astype(np.float32)
    strong, weak = names.index("producing.L1.H2.lse"), names.index("reading.L0.H0.entropy")
    logit = 2.5 * features[:, strong] + 1.2 * features[:, weak]
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    return Rows(features, labels, np.arange(rows).astype(str), np.zeros(rows, dtype=bool))


def test_the_heads_that_matter_come_first_and_the_cost_is_theirs() -> None:
    fit, held = planted(1500, 0), planted(1500, 1)
    names = feature_names(SHAPE)
    full = 2.5 * held.features[:, names.index("producing.L1.H2.lse")] + 1.2 * held.features[:, names.index("reading.L0.H0.entropy")]
    one, two = fit_sparse(fit, held, full, target="confidence", model="m", shape=SHAPE, counts=(1, 2))
    assert one.heads == ((1, 2),)
    assert two.heads == ((1, 2), (0, 0))
    assert one.quality["cost"][1] > 0.01
    assert abs(two.quality["cost"][0]) < 0.01
    assert one.quality["auroc_no_heads"][0] == pytest.approx(0.5, abs=0.05)
    assert {name.split(".")[1] for name, *_ in one.features if ".H" in name} == {"L1"}


def test_only_columns_of_the_kept_heads_and_of_no_head_are_read() -> None:
    names = feature_names(SHAPE)
    kept = {names[c] for c in kept_columns([(1, 2)], SHAPE)}
    heads = {n for n in kept if n in head_feature_names(SHAPE)}
    assert all((".L1.H2." in n) or n.endswith(".L1.K1") for n in heads), "head 2 is of the second KV head"
    assert {"producing.L1.H2.lse", "reading.L1.H2.lse", "retention_image.L1.K1", "logits.entropy", "place.index", "kept"} <= kept
    assert kept - heads == set(names) - set(head_feature_names(SHAPE))


def test_a_checkpoint_is_small_and_says_the_same_after_a_round_trip(traces: list[Trace], tmp_path: Path) -> None:
    table = load_table(traces)
    rows = answer_rows(table)
    planted_labels = Rows(rows.features, (rows.features[:, 0] > np.median(rows.features[:, 0])).astype(np.int8), rows.groups, rows.reduced)
    shape = Shape(layers=5, heads=8, kv_heads=4)
    full = rows.features[:, 0]
    made = fit_sparse(planted_labels, planted_labels, full, target="confidence", model="m", shape=shape, counts=(4,))[0]
    made.save(tmp_path / "c.json")
    assert (tmp_path / "c.json").stat().st_size < 8_000
    again = load_checkpoint(tmp_path / "c.json")
    values = [again.answer(list(a.tokens), a.trace.prompt) for a in table.answers]
    np.testing.assert_allclose(values, [made.answer(list(a.tokens), a.trace.prompt) for a in table.answers], atol=1e-4)
    assert np.mean((np.array(values) > 0.5) == planted_labels.labels) > 0.8


def test_rows_of_claims_and_of_single_tokens_are_one_code(traces: list[Trace]) -> None:
    table = load_table(traces)
    rows = claim_rows(table)
    for i in range(0, len(table.claims), 7):
        answer = table.answers[int(table.claims.answer[i])]
        token = answer.tokens[int(table.claims.token[i])]
        np.testing.assert_array_equal(rows.features[i], feature_row(token.heads, token, str(table.claims.kinds[i]), answer.trace.prompt))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ProbesError, match="introspect train"):
        load_checkpoint(path)
    path.write_text(json.dumps({"format": "introspect-checkpoint/1", "feature_schema": "old"}), encoding="utf-8")
    with pytest.raises(ProbeMismatchError, match="feature schema old"):
        load_checkpoint(path)
