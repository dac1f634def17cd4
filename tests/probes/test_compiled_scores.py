"""Scores of random answers, worked out compiled, against the same formulas in NumPy over whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from introspect.types import HeadRow, LogitStats, StepTrace
from introspect_kernels import INDICES, REALS, Segment
from introspect_probes import compiled_scores as at
from introspect_probes.features import Shape
from introspect_probes.scoring_benchmark import random_prompt, random_row
from introspect_probes.training_free import SCORES, Words

SHAPES = (Shape(3, 6, 2), Shape(2, 5, 5), Shape(16, 4, 1), Shape(32, 2, 2))
"""Of sixteen layers 5/32 is two and a half, of three heads and more some see more entries than others."""


class Answer:
    """A statistic of the rows that predicted words, and of those that read them, stacked."""

    def __init__(self, steps: list[StepTrace]) -> None:
        words = [s for s in steps if s.heads is not None and s.logits is not None and not s.is_special]
        self.ids = np.array([s.token_id for s in words])
        self.probabilities = np.exp([s.logits.logprob for s in words if s.logits is not None])
        self._predicting = [s.heads for s in words]
        self._reading = [b.heads for a, b in pairwise(steps) if a.logits is not None and not a.is_special and b.heads is not None]
        self.prompt = steps[0].prompt.token_ids

    def said(self, name: str) -> NDArray[Any]:
        return np.stack([getattr(row, name) for row in self._predicting]).astype(np.float64)

    def read(self, name: str) -> NDArray[Any]:
        return np.stack([getattr(row, name) for row in self._reading]).astype(np.float64)

    def entries(self, segments: slice) -> NDArray[Any]:
        kept, heads = self.said("retained")[..., segments].sum(-1), self.said("mass").shape[2]
        return np.repeat(kept, heads // kept.shape[2], axis=2)


def visual(answer: Answer) -> float:
    mass = answer.said("mass")
    image, template = mass[..., Segment.IMAGE].mean((1, 2)), mass[..., Segment.TEMPLATE].mean((1, 2))
    return float((image / np.maximum(template, 1e-6)).mean())


def svar(answer: Answer) -> float:
    mass = answer.said("mass")
    first = round(mass.shape[1] * 5 / 32)
    return float(mass[:, first : max(round(mass.shape[1] * 18 / 32), first + 1), :, Segment.IMAGE].mean(2).sum(1).mean())


def lookback(answer: Answer) -> float:
    mass, new = answer.said("mass"), slice(Segment.GENERATED, Segment.GENERATED + 1)
    prompt = mass[..., : Segment.GENERATED].sum(-1) / np.maximum(answer.entries(slice(Segment.GENERATED)), 1)
    both = prompt + mass[..., Segment.GENERATED] / np.maximum(answer.entries(new), 1)
    return float((prompt / np.maximum(both, 1e-6)).mean())


def itself(answer: Answer) -> float:
    own = answer.read("self_mass")
    return float(np.log(np.maximum(own[:, own.shape[1] // 2], 1e-6)).sum(1).mean())


def rauq(answer: Answer) -> float:
    previous, found = np.nan_to_num(answer.read("previous_mass")), []
    depth = previous.shape[1]
    for layer in range(depth // 3, -(-2 * depth // 3)):
        looking, curve = previous[:, layer, previous[1:, layer].mean(0).argmax()], [answer.probabilities[0]]
        for own, passed in zip(answer.probabilities[1:], looking[1:], strict=False):
            curve.append(0.2 * own + 0.8 * passed * curve[-1])
        found.append(1 - np.log(np.maximum(curve, 1e-6)).mean())
    return float(max(found))


def waad(answer: Answer) -> float:
    far = answer.said("mean_distance").mean(0).ravel()
    near = answer.said("windowed_distance").mean(0).ravel()
    return float(near[np.argsort(far, kind="stable")[: max(1, round(0.3 * far.size))]].mean())


def retrieval(answer: Answer) -> float:
    places, ids = answer.said("argmax_position").astype(int), answer.prompt
    inside = (places >= 0) & (places < len(ids))
    return float((inside & (ids[np.clip(places, 0, len(ids) - 1)] == answer.ids[:, None, None])).mean())


def agreement(answer: Answer) -> float:
    places = answer.said("argmax_position")
    return float((places[..., None] == places[..., None, :]).sum(-1).max(-1).mean() / places.shape[-1])


def spread(answer: Answer) -> float:
    entries = answer.entries(slice(None))
    shares = np.where(entries > 1, answer.said("entropy") / np.log(np.maximum(entries, 2)), 0.0)
    return float((shares.sum((1, 2)) / (entries > 1).sum((1, 2))).mean())


FORMULAS: dict[str, Callable[[Answer], float]] = {
    "visual_attention_score": visual,
    "svar": svar,
    "lookback_ratio": lookback,
    "prelim_attention_score": lambda answer: float(answer.said("mass")[:, 0, :, Segment.GENERATED].mean()),
    "attention_score": itself,
    "rauq": rauq,
    "waad": waad,
    "retrieval_share": retrieval,
    "image_output_share": lambda answer: float(np.nanmean(answer.said("image_output_share"))),
    "head_consensus": agreement,
    "attention_entropy": spread,
}


def made_answer(shape: Shape, rng: np.random.Generator) -> list[StepTrace]:
    """Fifteen steps, the thirteenth of a control token: heads that agree, that look at what is said, that have no value."""
    prompt, steps = random_prompt(shape, rng), []
    prompt.token_ids[:] = rng.integers(0, 5, len(prompt.token_ids))
    for index in range(15):
        row = random_row(shape, rng)
        row.argmax_position[:, :2], row.self_mass[:, 0], row.previous_mass[0] = 7, 1e-9, np.nan
        if index % 3 == 1:  # heads without any entry
            row.image_output_share[-1, -1], row.entropy[-1, -1], row.argmax_position[-1, -1] = np.nan, 0, -1
            row.retained[-1, -1] = 0
        logits = LogitStats(float(rng.uniform(-3, 0)), 0.5, 0.5, (), ())
        steps.append(StepTrace(prompt, index, 599 + index, int(rng.integers(0, 5)), "", index == 12, logits, row))
    return steps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 15])
def test_every_score_is_its_formula(shape: Shape, tokens: int) -> None:
    steps = made_answer(shape, np.random.default_rng(tokens))[:tokens]
    words, answer = Words(steps), Answer(steps)
    for name, formula in FORMULAS.items():
        found = SCORES[name](words)
        if tokens == 1 and name in ("attention_score", "rauq"):  # no row has read the word
            assert np.isnan(found) if name == "attention_score" else found == -words.logprobs.mean()
            continue
        if tokens == 2 and name == "rauq":  # one row has
            assert found == -words.logprobs.mean()
            continue
        np.testing.assert_allclose(found, formula(answer), rtol=1e-9, err_msg=name)


def test_planes_are_the_kernels_order() -> None:
    names = ("entropy", "image_output_share", "self_mass", "previous_mass", "mean_distance", "windowed_distance")
    assert [REALS.index(name) for name in names] == [at.ENTROPY, at.OUTPUT_SHARE, at.SELF, at.PREVIOUS, at.FAR, at.NEAR]
    assert (INDICES.index("argmax_position"), len(REALS), len(INDICES), len(Segment)) == (at.ARGMAX, at.REALS, at.INDICES, at.SEGMENTS)
    assert (Segment.TEMPLATE, Segment.IMAGE, Segment.GENERATED) == (at.TEMPLATE, at.IMAGE, at.GENERATED)


def test_rows_of_another_shape_are_refused_rather_than_read_beyond_their_end() -> None:
    steps = made_answer(Shape(3, 6, 2), np.random.default_rng(0))
    for block, cut in (("reals", np.s_[:, :-1]), ("indices", np.s_[:, :, :-1]), ("mass", np.s_[..., :-1]), ("retained", np.s_[:, :-1])):
        words = Words(steps)
        row = HeadRow.joined(words._rows)
        arrays = {name: getattr(row, name) for name in ("reals", "indices", "mass", "retained")}
        arrays[block] = arrays[block][cut].copy()
        ids, probabilities = np.zeros(1, np.int64), np.ones(1)
        with pytest.raises(ValueError, match="all of one model"):
            at.compiled()(*arrays.values(), ids, ids, words.prompt.token_ids, ids, probabilities)


def test_an_answer_without_rows_has_no_such_score() -> None:
    steps = [
        StepTrace(s.prompt, s.index, s.position, s.token_id, s.text, s.is_special, s.logits, None)
        for s in made_answer(Shape(3, 6, 2), np.random.default_rng(0))[:3]
    ]
    words = Words(steps)
    assert np.isnan(words.attended).all()
    assert SCORES["mean_logprob"](words) == words.logprobs.mean()
