"""Models that cannot be measured are refused on loading, with the reason: by their configuration, or after a trial on three tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from tiny_model import tiny_text, tiny_vision
from tiny_tokenizer import IMAGE, build_tiny_tokenizer
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    SmolVLMProcessor,
)

from introspect.errors import ModelLoadError
from introspect.loading import load_model, prepare
from introspect.processors import _class_of, can_do_without_video


def llava_config(**text: Any) -> LlavaConfig:
    """A tiny LLaVA around the language model described."""
    config = tiny_text(**({"model_type": "llama"} | text))
    vision = tiny_vision(model_type="clip_vision_model")
    return LlavaConfig(text_config=config, vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1)


CONFIGURATIONS: dict[str, tuple[Any, str]] = {
    "images in cross-attention": (lambda: MllamaConfig(), "cross-attention layers cannot be measured"),
    "encoder-decoder": (lambda: AutoConfig.for_model("florence2"), "an encoder-decoder"),
    "linear attention": (
        lambda: llava_config(model_type="qwen3_next", num_hidden_layers=4, layer_types=["linear_attention"] * 3 + ["full_attention"]),
        "this model has linear_attention",
    ),
    "chunked attention": (
        lambda: llava_config(model_type="llama4_text", layer_types=["chunked_attention", "full_attention"]),
        "this model has chunked_attention",
    ),
    "prefix mask": (lambda: AutoConfig.for_model("paligemma"), "attend to later ones"),
    "no image token": (lambda: LlamaConfig(), "names no image token"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_refused_by_the_configuration_before_any_weight_is_read(name: str, tmp_path: Path) -> None:
    build, reason = CONFIGURATIONS[name]
    build().save_pretrained(tmp_path)  # no weights: reading them would be another error
    with pytest.raises(ModelLoadError, match=reason):
        load_model(str(tmp_path))


class ScaledLogits(LlavaForConditionalGeneration):
    """A model that changes its logits after its head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def paligemma() -> PaliGemmaForConditionalGeneration:
    """A model whose whole prompt attends to itself, though its configuration does not say so."""
    text = tiny_text(model_type="gemma", hidden_size=48)
    vision = tiny_vision(model_type="siglip_vision_model", projection_dim=48, vision_use_head=False)
    config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, projection_dim=48)
    config.text_config.use_bidirectional_attention = None
    return PaliGemmaForConditionalGeneration(config)


TRIALS: dict[str, tuple[Any, str]] = {
    "learned sinks": (
        lambda: LlavaForConditionalGeneration(llava_config(model_type="gpt_oss", num_local_experts=2, num_experts_per_tok=1)),
        "learned sinks",
    ),
    "capped scores": (
        lambda: LlavaForConditionalGeneration(llava_config(model_type="gemma2", layer_types=["full_attention"] * 2)),
        "capped scores cannot be measured",
    ),
    "windows only": (
        lambda: LlavaForConditionalGeneration(llava_config(model_type="mistral", sliding_window=32)),
        "every layer has a sliding window of 32",
    ),
    "no attention interface": (lambda: LlavaForConditionalGeneration(llava_config(model_type="bloom", n_layer=2, n_head=4)), "attention"),
    "logits changed after the head": (lambda: ScaledLogits(llava_config()), "changes its logits after its head"),
    "prefix mask": (paligemma, "\\(a prefix mask\\)"),
}


@pytest.mark.parametrize("name", TRIALS)
def test_refused_by_the_trial(name: str) -> None:
    build, reason = TRIALS[name]
    torch.manual_seed(0)
    with pytest.raises(ModelLoadError, match=reason):
        prepare(name, build().eval(), build_tiny_tokenizer(), "0" * 64)


def test_a_window_as_long_as_the_context_is_none() -> None:
    model = LlavaForConditionalGeneration(llava_config(model_type="mistral", sliding_window=512))
    assert prepare("mistral", model.eval(), build_tiny_tokenizer(), "0" * 64).windows == (None, None)


def test_a_model_without_a_processor_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = FAMILIES["llava-next"]().loaded
    loaded.model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"cannot load .* as an image-text-to-text model"):
        load_model(str(tmp_path))
    loaded.tokenizer.save_pretrained(tmp_path)  # and no file of an image processor
    with pytest.raises(ModelLoadError, match="image processor"):
        load_model(str(tmp_path))


def test_a_tokenizer_that_does_not_tell_where_tokens_stand_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    loaded = FAMILIES["llava-next"]().loaded
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    monkeypatch.setattr(type(loaded.tokenizer), "is_fast", False)
    with pytest.raises(ModelLoadError, match="expected a tokenizer that tells where tokens stand"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("kind", "can"), [(Qwen2VLProcessor, True), (SmolVLMProcessor, False), (LlavaProcessor, False)])
def test_only_an_optional_video_part_is_done_without(kind: Any, can: bool) -> None:
    assert can_do_without_video(kind) == can


def test_the_processor_class_is_named_by_the_files_or_by_the_configuration(tmp_path: Path) -> None:
    assert _class_of(tmp_path, Qwen2VLConfig()) is Qwen2VLProcessor
    assert _class_of(tmp_path, LlamaConfig()) is None
    (tmp_path / "tokenizer_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    assert _class_of(tmp_path, Qwen2VLConfig()) is LlavaProcessor
