"""Models of the world of digits: small LLaVAs in Hugging Face's own classes."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from introspect_probes.embedded.batches import Batch
from introspect_probes.embedded.shape import EMBEDDED, IMAGE_SIZE, ModelShape
from introspect_probes.embedded.tokenizer import BOS, EOS, IMAGE, PAD, build_tokenizer, token_ids


def build_processor(shape: ModelShape = EMBEDDED) -> LlavaProcessor:
    """Tokenizer and image processor (the PIL one: torchvision has no CPU build to match torch's)."""
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    tokenizer = build_tokenizer()
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )


def build_config(shape: ModelShape = EMBEDDED) -> LlavaConfig:
    """The configuration of a shape."""
    tokenizer = build_tokenizer()
    bos, eos, pad, image = token_ids(tokenizer, BOS, EOS, PAD, IMAGE)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_inner,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=IMAGE_SIZE,
        patch_size=shape.patch,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def build_model(shape: ModelShape = EMBEDDED) -> LlavaForConditionalGeneration:
    """The untrained model; its patch positions begin as sines and cosines of row and column."""
    model = LlavaForConditionalGeneration(build_config(shape))
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[1:].copy_(_grid_positions(shape.side, positions.shape[1]))
    return model


def _grid_positions(side: int, size: int) -> torch.Tensor:
    """`[side * side, size]`: half the features tell the row, half the column."""
    frequencies = 50.0 ** -(torch.arange(size // 4) / (size // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return 0.3 * torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


def image_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image features `[batch, image tokens, hidden]` of `pixels [batch, 3, height, width]`."""
    features = model.model.get_image_features(pixel_values=pixels).pooler_output
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def forward_packed(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, length, vocab]` of a packed batch, and the projected image features."""
    features = image_features(model, batch.pixels)
    embeds = model.get_input_embeddings()(batch.tokens)
    is_image = batch.tokens == model.config.image_token_index
    embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
    mask = batch.mask
    if model.model.language_model.config._attn_implementation == "eager":  # which adds its mask to the scores
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden), features
