"""The world's Qwen2-VL: what it is trained on is what it meets when it is served, and it is no LLaVA by another name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.types import Budget
from introspect_probes.embedded.batches import PackedBatches
from introspect_probes.embedded.evaluate import accuracy_by_kind
from introspect_probes.embedded.model import build_model, build_processor, forward_packed, image_features, packer_of
from introspect_probes.embedded.plan import PLANS
from introspect_probes.embedded.qwen2_vl import vision_inputs
from introspect_probes.embedded.train import DenseReader
from introspect_probes.record import request_of
from introspect_probes.worlds.questions import Question
from introspect_probes.worlds.world import get_world

PLAN = PLANS["study-qwen2-vl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained one, stored."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen") / "model"
    build_model(PLAN.shape).save_pretrained(path)
    build_processor(PLAN.shape).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def case():
    """A question about a cell."""
    return next(iter(get_world("digits").cases(1, seed=5, pool="probe", kinds=("digit_at",))))


def test_patches_are_those_of_the_familys_own_image_processor(case):
    model, processor = build_model(PLAN.shape), build_processor(PLAN.shape)
    wanted = processor.image_processor([case.picture()], return_tensors="pt")
    pixels = torch.from_numpy(np.array(case.picture())).permute(2, 0, 1)[None] / 127.5 - 1
    found = vision_inputs(model.config.vision_config, pixels)
    assert wanted["image_grid_thw"].tolist() == found["image_grid_thw"].tolist() == [[1, 12, 12]]
    torch.testing.assert_close(found["pixel_values"], wanted["pixel_values"], atol=1e-6, rtol=0)


def test_a_packed_question_gets_the_logits_of_a_served_one(folder, case):
    loaded = load_model(str(folder))
    assert isinstance(loaded.model, Qwen2VLForConditionalGeneration)
    asked = [
        ("count", Question("count", "how many red ?", "2")),
        (case.kind, Question(case.kind, case.question, case.answers[0], context=case.context)),
    ]
    packer = packer_of(loaded.model, loaded.tokenizer)
    packed = packer.pack([case.scene] * 2, [asked] * 2, np.random.default_rng(0))
    engine = Engine(loaded)
    prompt = engine.encode(request_of(case, Budget(), max_tokens=1))
    assert prompt.image_grids == ((6, 6),)
    (last,) = ((packed.blocks[1] == 1) & (packed.labels[1] >= 0)).nonzero()[:1, 0]
    assert prompt.positions[:, -1].tolist() == packed.positions[:, 1, last].tolist()
    (steps,) = engine.score_encoded([prompt], [[int(packed.labels[1, last])]])
    with torch.no_grad():
        logprobs = forward_packed(loaded.model, packed)[0][1, last].log_softmax(-1)
    assert steps[0].logits.logprob == pytest.approx(float(logprobs[packed.labels[1, last]]), abs=1e-4)
    assert steps[0].logits.top_ids[0] == int(logprobs.argmax())


def test_image_tokens_have_rows_and_columns_and_text_goes_on_behind_the_larger():
    shape, stage = PLAN.shape, PLAN.stage(PLAN.dense_steps)
    tokenizer = build_processor(shape).tokenizer
    batch = next(iter(PackedBatches(tokenizer, shape, 1, 0, 0, mix=stage.mix, style=stage.style)))
    assert batch.positions.shape == (3, *batch.tokens.shape)
    time, row, column = batch.positions[:, 0, : 2 + 36].tolist()
    assert time == [0, 1] + [2] * 36
    assert row[2:] == [2 + r for r in range(6) for _ in range(6)]
    assert column[2:] == [2 + c for _ in range(6) for c in range(6)]
    first = (batch.blocks[0] == 0).nonzero()[0, 0]
    assert batch.positions[:, 0, first].tolist() in ([8] * 3, [2] * 3)


def test_dense_labels_train_tower_and_merger_and_ask_no_place_of_them():
    torch.manual_seed(0)
    model = build_model(PLAN.shape)
    batch = next(iter(PackedBatches(build_processor(PLAN.shape).tokenizer, PLAN.shape, 2, 0, 0, mix=None, style=PLAN.stage(0).style)))
    reader = DenseReader(128, PLAN.shape.patch, list(range(10)), list(range(8)), places=False)
    assert "place.weight" not in dict(reader.named_parameters())
    reader(image_features(model, batch.pixels), batch, model.lm_head.weight).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.visual.parameters())


def test_what_is_stored_is_evaluated(folder):
    found = accuracy_by_kind(folder, "test", scenes=4, batch_size=2)
    assert found["digit_at"]["count"] == 4
    assert found["picture"]["accuracy"] < 0.5
