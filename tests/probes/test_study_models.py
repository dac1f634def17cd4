"""Small models for studies: their shape, plans, checkpoints; and that the embedded model's own have not changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from introspect.loading import embedded_folder
from introspect_probes.embedded.batches import IGNORE, PackedBatches
from introspect_probes.embedded.checkpoints import checkpoint_steps, load_checkpoint_model, save_checkpoint
from introspect_probes.embedded.llava import build_config
from introspect_probes.embedded.model import build_model, build_processor, forward_packed
from introspect_probes.embedded.plan import PLANS, Plan
from introspect_probes.embedded.shape import SHAPES
from introspect_probes.errors import ProbesError
from introspect_probes.worlds.scene import CELL_PIXELS

STUDY = PLANS["study"]


def test_the_embedded_models_shape_and_numbers_are_what_its_files_say() -> None:
    stored, built = AutoConfig.from_pretrained(embedded_folder()), build_config()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
        assert getattr(stored.text_config, name) == getattr(built.text_config, name)
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        assert getattr(stored.vision_config, name) == getattr(built.vision_config, name)
    assert stored.image_seq_length == SHAPES["embedded"].image_tokens == 144
    plan = json.loads((embedded_folder() / "training_record.json").read_text())["plan"]
    assert {name: getattr(Plan(), name) for name in plan} == plan


def test_a_cell_of_the_study_model_is_four_image_tokens() -> None:
    shape = STUDY.shape
    assert (CELL_PIXELS // shape.patch) ** 2 == 4
    model, processor = build_model(shape), build_processor(shape)
    assert model.config.image_seq_length == shape.image_tokens == 36
    assert 900_000 < sum(p.numel() for p in model.parameters()) < 1_300_000
    assert build_config(PLANS["study-multi-head"].shape).text_config.num_key_value_heads == 8
    scene = next(iter(PackedBatches(processor.tokenizer, shape, 1, 0, 0, mix=None, style=STUDY.stage(0).style)))
    assert int((scene.tokens == model.config.image_token_index).sum()) == 36


def test_eager_training_computes_what_the_flash_kernel_does() -> None:
    torch.manual_seed(0)
    model = build_model(STUDY.shape)
    stage = STUDY.stage(STUDY.dense_steps)
    batch = next(iter(PackedBatches(build_processor(STUDY.shape).tokenizer, STUDY.shape, 2, 0, 0, mix=stage.mix, style=stage.style)))
    with torch.no_grad():
        flash = forward_packed(model, batch)[0]
        model.model.language_model.set_attn_implementation("eager")
        eager = forward_packed(model, batch)[0]
    wanted = batch.labels != IGNORE
    torch.testing.assert_close(eager[wanted], flash[wanted], atol=1e-5, rtol=1e-4)
    assert set(np.concatenate(batch.kinds)) <= set(STUDY.mix.weights)


def test_checkpoints_are_log_spaced_from_where_the_language_model_begins() -> None:
    marks = sorted(STUDY.marks())
    assert len(marks) == STUDY.checkpoints + 1
    assert marks[0] == 0
    assert marks[-1] == STUDY.steps
    after = np.array(marks[1:]) - STUDY.dense_steps
    np.testing.assert_allclose(np.diff(np.log(after))[4:], np.log(STUDY.joint_steps) / STUDY.checkpoints, atol=0.05)
    assert sorted(Plan().marks())[-1] == 4100
    assert min(Plan().marks() - {0}) == 2


def test_a_checkpoint_is_loaded_as_the_model_of_that_step(tmp_path) -> None:
    model = build_model(STUDY.shape)
    save_checkpoint(model, tmp_path, 0)
    with pytest.raises(ProbesError, match="no finished training run"):
        checkpoint_steps(tmp_path)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    save_checkpoint(model, tmp_path, STUDY.steps)
    model.bfloat16().save_pretrained(tmp_path / "model")
    build_processor(STUDY.shape).save_pretrained(tmp_path / "model")
    assert checkpoint_steps(tmp_path) == [0, STUDY.steps]
    models = [load_checkpoint_model(tmp_path, step) for step in (0, STUDY.steps)]
    for factor, loaded in zip((1.0, 1.5), models, strict=True):
        for name, p in loaded.model.named_parameters():
            assert torch.equal(p, (first[name] * factor).bfloat16().float()), name
    assert models[0].fingerprint != models[1].fingerprint
