"""Families under test: the real class, tiny random weights, real image tensors from the PIL processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from introspect.loading import LoadedModel, prepare
from introspect.prompt import EncodedPrompt, encoded_from_inputs
from introspect.types import Budget, Request, SamplingParams
from introspect_kernels import Segment
from introspect_probes.embedded.model import build_model, build_processor
from introspect_probes.embedded.tokenizer import IMAGE, build_tokenizer


@dataclass(frozen=True)
class TinyModel:
    """A loaded model, and how to make a prompt for it."""

    loaded: LoadedModel
    inputs: Callable[[int], dict[str, torch.Tensor]]
    vision_kwargs: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

    def prompt(self, seed: int = 0, *, max_tokens: int = 6, budget: Budget | None = None) -> EncodedPrompt:
        """A prompt with a random picture: sink, template, image, context, question, template."""
        inputs = self.inputs(seed)
        token_ids = inputs["input_ids"][0]
        image = (token_ids == self.loaded.image_token_id).numpy()
        segments = np.full(len(token_ids), int(Segment.TEMPLATE), dtype=np.uint8)
        after = int(np.flatnonzero(image)[-1]) + 1
        segments[image] = Segment.IMAGE
        segments[after : after + 4] = Segment.CONTEXT
        segments[after + 4 : -1] = Segment.QUESTION
        segments[0] = Segment.SINK
        request = Request(f"r{seed}", (), SamplingParams(max_tokens=max_tokens), budget or Budget())
        return encoded_from_inputs(self.loaded, request, inputs, segments)


def _picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _token_ids(seed: int, image_token: int, num_image_tokens: int, first: int, vocab: int) -> torch.Tensor:
    rng = np.random.default_rng(seed + 100)
    text = rng.integers(first, vocab, 14)
    return torch.tensor([[1, *text[:2], *[image_token] * num_image_tokens, *text[2:]]])


def _embedded() -> TinyModel:
    processor = build_processor()
    loaded = prepare("embedded-untrained", build_model().eval(), processor, "f" * 64)

    def inputs(seed: int) -> dict[str, torch.Tensor]:
        pixels = processor.image_processor(_picture(seed, 96, 96), return_tensors="pt")["pixel_values"]
        return {"input_ids": _token_ids(seed, loaded.image_token_id, 144, 10, 300), "pixel_values": pixels}

    return TinyModel(loaded, inputs, lambda given: {"pixel_values": given["pixel_values"]})


def _llava_next() -> TinyModel:
    tokenizer = build_tokenizer()
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
    )  # fmt: skip
    loaded = prepare("llava-next", LlavaNextForConditionalGeneration(config).eval(), tokenizer, "a" * 64)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=config.image_grid_pinpoints
    )

    def inputs(seed: int) -> dict[str, torch.Tensor]:
        tensors = dict(images(_picture(seed, 60, 40), return_tensors="pt"))
        features = loaded.model.model.get_image_features(tensors["pixel_values"], tensors["image_sizes"]).pooler_output
        count = sum(len(f) for f in features)
        return {"input_ids": _token_ids(seed, image_token, count, 10, 300), **tensors}

    return TinyModel(loaded, inputs, lambda given: {k: given[k] for k in ("pixel_values", "image_sizes")})


def _qwen2_5_vl() -> TinyModel:
    tokenizer = build_tokenizer()
    image_token = 300
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
            "fullatt_block_indexes": [1], "window_size": 56,
        },
        image_token_id=image_token, video_token_id=301, vision_start_token_id=302, vision_end_token_id=303,
    )  # fmt: skip
    loaded = prepare("qwen2.5-vl", Qwen2_5_VLForConditionalGeneration(config).eval(), tokenizer, "b" * 64)
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=140 * 140)

    def inputs(seed: int) -> dict[str, torch.Tensor]:
        tensors = dict(images(_picture(seed, 112, 84), return_tensors="pt"))
        count = int(tensors["image_grid_thw"].prod() // 4)
        token_ids = _token_ids(seed, image_token, count, 10, 300)
        return {"input_ids": token_ids, "mm_token_type_ids": (token_ids == image_token).int(), **tensors}

    return TinyModel(loaded, inputs, lambda given: {k: given[k] for k in ("pixel_values", "image_grid_thw", "mm_token_type_ids")})


FAMILIES: dict[str, Callable[[], TinyModel]] = {"embedded": _embedded, "llava-next": _llava_next, "qwen2.5-vl": _qwen2_5_vl}
