"""Features mean what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from introspect_kernels import Segment
from introspect_probes.features import LOGITS, PLACE, Shape, across_heads, head_feature_names, head_features, place_features, token_features
from introspect_probes.traces import Trace


def longest(traces: list[Trace]) -> Trace:
    """The trace with the most tokens."""
    return max(traces, key=lambda t: len(t.steps))


def test_names_and_values_line_up(traces: list[Trace]) -> None:
    trace = longest(traces)
    first, second = trace.steps[0], trace.steps[1]
    assert first.heads is not None
    assert second.heads is not None
    layers, heads = first.heads.lse.shape
    kv_heads = first.heads.retained.shape[1]
    names = head_feature_names(Shape(layers, heads, kv_heads))
    values = dict(zip(names, head_features(first.heads, second.heads, trace.prompt, first.position), strict=True))
    assert values["producing.L1.H3.lse"] == pytest.approx(float(first.heads.lse[1, 3]))
    assert values["reading.L1.H3.lse"] == pytest.approx(float(second.heads.lse[1, 3]))
    assert values["producing.L2.H5.mass_image"] == pytest.approx(float(first.heads.mass[2, 5, Segment.IMAGE]), abs=1e-6)
    count = first.heads.retained[0, 0].sum()
    assert values["producing.L0.H0.entropy"] == pytest.approx(float(first.heads.entropy[0, 0] / np.log(count)), rel=1e-5)
    image = np.sort(first.heads.mass[3, :, Segment.IMAGE])
    gini = np.abs(image[:, None] - image[None]).sum() / (2 * heads**2 * image.mean())
    assert values["producing.L3.image_gini"] == pytest.approx(float(gini), rel=1e-4)


def test_no_feature_is_ever_missing(traces: list[Trace]) -> None:
    for trace in traces:
        assert len(trace.steps) > 1
        for index in range(len(trace.steps) - 1):
            features = token_features(trace.steps, index, trace.steps[index + 1])
            assert features is not None
            assert np.isfinite(features.heads).all()
            assert len(features.logits) == len(LOGITS)
            assert np.isfinite(features.logits).all()


def test_without_a_reading_row_the_producing_row_stands_in(traces: list[Trace]) -> None:
    trace = longest(traces)
    provisional, final = token_features(trace.steps, 0, None), token_features(trace.steps, 0, trace.steps[1])
    assert provisional is not None
    assert final is not None
    assert not np.array_equal(provisional.heads, final.heads)


def test_repetition_counts_earlier_uses_of_the_word() -> None:
    assert dict(zip(PLACE, place_features([7, 8, 7, 7]), strict=True)) == {
        "index": 3, "log_index": pytest.approx(np.log(4)), "repetition": 2, "first": 0,
    }  # fmt: skip


@pytest.mark.parametrize("values", [[[3, 1, 3, 3], [1, 2, 3, 4]], [[-1, -1, -1, -1], [2, 2, 5, 5]]])
def test_agreement_is_the_share_of_the_commonest_argmax(values: list[list[int]]) -> None:
    argmax = np.array(values)
    expected = [np.unique(row, return_counts=True)[1].max() / 4 for row in argmax]
    assert across_heads(np.ones((2, 4), dtype=np.float32), argmax)[3].tolist() == expected
