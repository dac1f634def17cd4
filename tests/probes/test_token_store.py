"""Features kept on disk are those that memory would hold, and what a fit reads of them is the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from introspect_probes.baseline_rows import ONE_WORD
from introspect_probes.dataset import TableBuilder, load_table
from introspect_probes.token_store import TokenStore
from introspect_probes.training_free import SCORES, Words


def test_a_table_with_its_tokens_on_disk_is_the_same_table(traces):
    whole = load_table(traces)
    with TokenStore() as store:
        builder = TableBuilder(store)
        for trace in traces:
            builder.add(trace)
        light = builder.table()
        for ours, theirs in zip(light.answers, whole.answers, strict=True):
            assert len(ours.tokens) == len(theirs.tokens)
            for chosen in (slice(None), slice(1, None), slice(None, None, -2), slice(3, 3)):
                for a, b in zip(ours.tokens[chosen], theirs.tokens[chosen], strict=True):
                    assert all(
                        np.array_equal(x, y) for x, y in zip((a.heads, a.logits, a.place), (b.heads, b.logits, b.place), strict=True)
                    )
            assert np.array_equal(ours.tokens[-1].logits, theirs.tokens[-1].logits)
            assert (ours.trace.id, ours.trace.steps, ours.trace.picture) == (theirs.trace.id, (), None)
            np.testing.assert_equal(ours.scores, theirs.scores)
        with pytest.raises(IndexError):
            light.answers[0].tokens[99]
        risks = np.linspace(0, 1, len(whole.claims))
        half = lambda count: (count + 1) // 2  # noqa: E731 - as a fit cuts answers
        for cut in (None, half):
            np.testing.assert_array_equal(light.confidence_features(risks, cut), whole.confidence_features(risks, cut))
    for name, values in whole.claims.__dict__.items():
        np.testing.assert_array_equal(getattr(light.claims, name), values)


def test_the_file_is_gone_with_the_store(traces):
    with TokenStore() as store:
        builder = TableBuilder(store)
        builder.add(traces[0])
        answer = builder.table().answers[0]
    with pytest.raises(ValueError, match="closed file"):
        answer.tokens[0]


def with_hidden(traces):
    """The traces, every second one with made-up hidden states of two layers."""
    rng = np.random.default_rng(0)
    rows = [sum(step.heads is not None for step in trace.steps) for trace in traces]
    drawn = [rng.normal(size=(count, 2, 3)).astype(np.float16) for count in rows]
    return [replace(trace, hidden=states if i % 2 else None) for i, (trace, states) in enumerate(zip(traces, drawn, strict=True))]


def test_what_baselines_read_is_kept_without_the_traces(traces):
    own = with_hidden(traces)
    with TokenStore() as store:
        builder = TableBuilder(store, baselines=True)
        for trace in own:
            builder.add(trace)
        light, whole = builder.table(), load_table(own)
        assert list(light.has_hidden) == list(whole.has_hidden) == [t.hidden is not None for t in own]
        for table in (light, whole):
            for answer, token in zip(table.claims.answer, table.claims.token, strict=True):
                trace, kept = own[answer], table.answers[answer].baselines
                assert kept.text(token) == "".join(step.text for step in trace.steps[: token + 1])
                said, after = trace.steps[token : token + 2]
                word = Words([said, replace(after, logits=None)])
                np.testing.assert_array_equal(kept.scores[kept.place[token]], [SCORES[name](word) for name in ONE_WORD])
                if trace.hidden is not None:
                    np.testing.assert_array_equal(kept.hidden[kept.place[token]], trace.hidden[token].astype(np.float32).ravel())
            for answer, trace in zip(table.answers, own, strict=True):
                if trace.hidden is not None:
                    last = trace.hidden[len(answer.tokens) - 1].astype(np.float32).ravel()
                    np.testing.assert_array_equal(answer.baselines.hidden[-1], last)


def test_what_was_not_kept_is_not_made_up(traces):
    builder = TableBuilder()
    builder.add(traces[0])
    with pytest.raises(ValueError, match="read without what baselines need"):
        _ = builder.table().answers[0].baselines
