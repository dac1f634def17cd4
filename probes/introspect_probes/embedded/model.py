"""Models of the world of digits, whatever their family: built, and run on packed batches."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin, Qwen2VLForConditionalGeneration

from introspect.inspection import image_token_of
from introspect_probes.embedded import llava, qwen2_vl
from introspect_probes.embedded.batches import Batch, Packer
from introspect_probes.embedded.shape import EMBEDDED, ModelShape


def build_processor(shape: ModelShape = EMBEDDED) -> ProcessorMixin:
    """Tokenizer and image processor (the PIL one: torchvision has no CPU build to match torch's)."""
    return qwen2_vl.build_processor(shape) if shape.mrope else llava.build_processor(shape)


def build_model(shape: ModelShape = EMBEDDED) -> PreTrainedModel:
    """The untrained model."""
    return qwen2_vl.build_model(shape) if shape.mrope else llava.build_model(shape)


def vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """What sees, up to the language model's width in Qwen2-VL and without the projector in LLaVA."""
    tower: PreTrainedModel = model.model.visual if isinstance(model, Qwen2VLForConditionalGeneration) else model.model.vision_tower
    return tower


def image_features(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image features `[batch, image tokens, hidden]` of `pixels [batch, 3, height, width]`."""
    is_qwen = isinstance(model, Qwen2VLForConditionalGeneration)
    given = qwen2_vl.vision_inputs(model.model.visual.config, pixels) if is_qwen else {"pixel_values": pixels}
    features = model.model.get_image_features(**given).pooler_output
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def packer_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Packer:
    """What packs batches for a stored model."""
    if isinstance(model, Qwen2VLForConditionalGeneration):
        return Packer(tokenizer, qwen2_vl.image_tokens(model.model.visual.config), mrope=True)
    return Packer(tokenizer, model.config.image_seq_length)


def forward_packed(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, length, vocab]` of a packed batch, and the projected image features."""
    features = image_features(model, batch.pixels)
    embeds = model.get_input_embeddings()(batch.tokens)
    is_image = batch.tokens == image_token_of(model.config)
    embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
    mask = batch.mask
    if model.model.language_model.config._attn_implementation == "eager":  # which adds its mask to the scores
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden), features
