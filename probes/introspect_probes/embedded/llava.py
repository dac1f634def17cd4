"""The world's LLaVA: CLIP vision tower, projector, Llama, in Hugging Face's own classes."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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
