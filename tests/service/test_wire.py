"""What goes over the wire comes out as it went in, of every family; what is no message is refused."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest
import torch
from families import FAMILIES

from introspect.head_row import HeadRow
from introspect.outline import facts_of
from introspect.types import Budget, EffectiveBudget, LogitStats, PromptInfo, SamplingParams, StepTrace
from introspect_kernels import INDICES, NUM_SEGMENTS, REALS
from introspect_service import wire


def values(generator, shape, kind):
    """Numbers of every kind that a statistic can have, NaN and infinity among them."""
    if kind == np.int32:
        return generator.integers(-1, 1 << 30, shape).astype(kind)
    made = generator.normal(size=shape).astype(kind)
    made.flat[0], made.flat[-1] = np.nan, -np.inf
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_every_family_arrives_whole(family):
    prompt = FAMILIES[family]().prompt(3, pictures=2, budget=Budget("snapkv", ratio=0.5, seed=4))
    sampling = SamplingParams(max_tokens=7, temperature=0.3, top_p=0.9, seed=1 << 62, stop=("\u2028", "x"))
    prompt = replace(prompt, request=replace(prompt.request, sampling=sampling, influence=True))
    sent = wire.encode(wire.begin(5, prompt))
    command = wire.read_command(sent)
    assert command.number == 5
    got = wire.prompt_of(command)
    for name in ("id", "sampling", "budget", "signals", "influence", "question"):
        assert getattr(got.request, name) == getattr(prompt.request, name), name
    assert (got.next_position, got.image_grids, got.length) == (prompt.next_position, prompt.image_grids, prompt.length)
    assert got.pixels.keys() == prompt.pixels.keys()
    for name, value in prompt.pixels.items():
        assert got.pixels[name].dtype == value.dtype
        assert torch.equal(got.pixels[name], value)
    assert torch.equal(got.token_ids, prompt.token_ids)
    assert torch.equal(got.positions, prompt.positions)
    np.testing.assert_array_equal(got.segments, prompt.segments, strict=True)


@pytest.mark.parametrize("family", ["embedded", "qwen2-vl"])
def test_a_step_arrives_to_the_bit(family):
    facts, generator = facts_of(FAMILIES[family]().loaded), np.random.default_rng(0)
    layers, heads, kv_heads = facts.num_layers, facts.num_heads, facts.num_kv_heads
    assert heads != kv_heads
    row = HeadRow(
        values(generator, (len(REALS), layers, heads), np.float32),
        values(generator, (len(INDICES), layers, heads), np.int32),
        values(generator, (layers, heads, NUM_SEGMENTS), np.float32),
        values(generator, (layers, kv_heads, NUM_SEGMENTS), np.int32),
    )
    info = PromptInfo(
        "r\u2028", "what\n?", np.arange(9), np.arange(9, dtype=np.uint8), None, ((2, 3),), EffectiveBudget("full", 9.0, 8.5, 9),
        np.arange(6, dtype=np.int32), values(generator, (layers, kv_heads, NUM_SEGMENTS), np.float32),
    )  # fmt: skip
    logits = LogitStats(-0.1, 2.5, float("inf"), (3, 4), (-0.1, float("-inf")))
    influence = values(generator, (4, layers, kv_heads), np.float32)
    step = StepTrace(info, 3, 12, 7, "\ud7ff\U0001f600", False, logits, row, "stop", influence)
    told = wire.read_answer(wire.encode(wire.Told([wire.said(9, step, is_first=True)], [])))
    assert [said.number for said in told.said] == [9]
    got = wire.step_of(told.said[0], wire.info_of(told.said[0].prompt), facts)
    for field in fields(step):
        one, other = getattr(step, field.name), getattr(got, field.name)
        if field.name in ("prompt", "heads"):
            for each in fields(one):
                np.testing.assert_equal(getattr(other, each.name), getattr(one, each.name))
        else:
            np.testing.assert_equal(other, one)
    for name in ("reals", "indices", "mass", "retained"):
        assert getattr(got.heads, name).dtype == getattr(row, name).dtype


def test_later_steps_do_not_tell_of_the_prompt_again():
    step = StepTrace(None, 0, 3, 7, "a", False, None, None)
    assert wire.said(1, step, is_first=False).prompt is None


@pytest.mark.parametrize(
    "sent", [b"", b"\xc1", wire.encode({"type": "Run", "code": "1"}), wire.encode([1, 2]), wire.encode(wire.Leave("a"))]
)
def test_what_is_no_message_is_refused(sent):
    with pytest.raises(msgspec.DecodeError):
        wire.read_command(sent)
