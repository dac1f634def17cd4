"""The world's Qwen2-VL: its own tower with rotary places and merged patches, and M-RoPE, in Hugging Face's own classes."""

from __future__ import annotations

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from introspect.processors import pictures_only
from introspect_probes.embedded.shape import IMAGE_SIZE, ModelShape
from introspect_probes.embedded.tokenizer import BOS, EOS, IMAGE, PAD, UNK, USER, build_tokenizer, token_ids
from introspect_probes.errors import ProbesError

MERGE = 2
"""Tower patches along a side of an image token. A patch is one frame: the second, equal in still pictures, would only cost time."""
ROPE_THETA = 10.0
"""Base of the rotary frequencies. Rows and columns have the lower five eighths of them (the share that Qwen2-VL gives them),
which under its base of a million would tell no two of six columns apart in heads of 32."""


def build_processor(shape: ModelShape) -> Qwen2VLProcessor:
    """Tokenizer and image processor, without the video part, which needs torchvision.

    No tokens stand before and after a picture: the world's template has none.
    """
    area = IMAGE_SIZE**2
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area},
        patch_size=shape.patch // MERGE,
        merge_size=MERGE,
        temporal_patch_size=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    tokenizer = build_tokenizer(image_token=IMAGE, video_token=UNK)
    processor: Qwen2VLProcessor = pictures_only(Qwen2VLProcessor)(images, tokenizer, chat_template=tokenizer.chat_template)
    return processor


def build_config(shape: ModelShape) -> Qwen2VLConfig:
    """The configuration of a shape; the width of a head is the model's over the number of heads in this family."""
    tokenizer = build_tokenizer()
    bos, eos, pad, image, user, unknown = token_ids(tokenizer, BOS, EOS, PAD, IMAGE, USER, UNK)
    frequencies = shape.head_dim // 2
    rows = 3 * frequencies // 8
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [frequencies - 2 * rows, rows, rows]},
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    vision = {
        "depth": shape.vision_layers,
        "embed_dim": shape.vision_width,
        "hidden_size": shape.width,
        "mlp_ratio": shape.vision_inner // shape.vision_width,
        "num_heads": shape.vision_heads,
        "patch_size": shape.patch // MERGE,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 1,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=unknown,
        vision_start_token_id=user,
        vision_end_token_id=unknown,
        tie_word_embeddings=True,
    )


def build_model(shape: ModelShape) -> Qwen2VLForConditionalGeneration:
    """The untrained model."""
    return Qwen2VLForConditionalGeneration(build_config(shape))


def image_tokens(vision: Qwen2VLVisionConfig) -> int:
    """Image tokens of a picture of the world."""
    return (IMAGE_SIZE // (_patch(vision) * vision.spatial_merge_size)) ** 2


def vision_inputs(vision: Qwen2VLVisionConfig, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tower's inputs of `pixels [batch, 3, height, width]`: flat patches, those of an image token together, and the grids."""
    patch, merge = _patch(vision), vision.spatial_merge_size
    batch, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    split = pixels.unflatten(3, (columns // merge, merge, patch)).unflatten(2, (rows // merge, merge, patch))
    patches = split.permute(0, 2, 5, 3, 6, 1, 4, 7)  # batch, token row, token column, row in it, column in it, channel, y, x
    return {"pixel_values": patches.flatten(5).flatten(0, 4), "image_grid_thw": torch.tensor([[1, rows, columns]] * batch)}


def _patch(vision: Qwen2VLVisionConfig) -> int:
    """Side of the tower's patches in pixels, which are squares here."""
    if not isinstance(vision.patch_size, int):
        raise ProbesError(f"expected square patches of one size, got {vision.patch_size}")
    return vision.patch_size
