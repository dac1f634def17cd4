"""Features kept on disk are those that memory would hold, and what a fit reads of them is the same."""

from __future__ import annotations

import numpy as np
import pytest

from introspect_probes.dataset import TableBuilder, load_table
from introspect_probes.token_store import TokenStore


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
