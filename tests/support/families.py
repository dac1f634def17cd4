"""Families under test: the real class, tiny random weights, real image tensors from the PIL processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_model import Tensors, TinyModel, ready, tiny_text, tiny_vision
from tiny_tokenizer import IMAGE, SEPARATOR, VIDEO, VISION_END, VISION_START, build_tiny_tokenizer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from introspect.loading import prepare
from introspect.processors import pictures_only
from introspect_probes.embedded.model import build_model, build_processor

__all__ = ["CORE", "FAMILIES", "WITH_PROCESSOR", "TinyModel"]

_PINPOINTS = [[32, 64], [64, 32], [64, 64]]
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_VISION_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
}  # fmt: skip


def _embedded() -> TinyModel:
    processor = build_processor()
    loaded = prepare("embedded-untrained", build_model().eval(), processor, "f" * 64)

    def see(pictures: list[Any]) -> Tensors:
        return {"pixel_values": processor.image_processor(pictures, return_tensors="pt")["pixel_values"]}

    return TinyModel(loaded, see, lambda tensors: [[loaded.image_token_id] * 144] * len(tensors["pixel_values"]), sizes=((96, 96),) * 3)


def _llava_next() -> TinyModel:
    config = LlavaNextConfig(
        vision_config=tiny_vision(model_type="clip_vision_model"),
        text_config=tiny_text(model_type="llama", num_hidden_layers=3, num_attention_heads=6, hidden_size=96),
        image_token_index=IMAGE, image_grid_pinpoints=_PINPOINTS, vision_feature_layer=-1,
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=_PINPOINTS)
    processor = LlavaNextProcessor(
        images, build_tiny_tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    loaded = ready("llava-next", LlavaNextForConditionalGeneration(config), processor)

    def spans(tensors: Tensors) -> list[list[int]]:
        with torch.no_grad():
            features = loaded.model.model.get_image_features(tensors["pixel_values"], tensors["image_sizes"]).pooler_output
        return [[IMAGE] * len(feature) for feature in features]

    return TinyModel(loaded, lambda pictures: dict(images(pictures, return_tensors="pt")), spans)


def _llava_onevision() -> TinyModel:
    config = LlavaOnevisionConfig(
        vision_config=tiny_vision(model_type="siglip_vision_model"), text_config=tiny_text(model_type="qwen2"),
        image_token_index=IMAGE, video_token_index=VIDEO, image_grid_pinpoints=_PINPOINTS,
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=_PINPOINTS)
    processor = pictures_only(LlavaOnevisionProcessor)(
        images, build_tiny_tokenizer(), num_image_tokens=16, vision_feature_select_strategy="full"
    )
    loaded = ready("llava-onevision", LlavaOnevisionForConditionalGeneration(config), processor)

    def see(pictures: list[Any]) -> Tensors:
        return dict(images(pictures, return_tensors="pt"))

    def spans(tensors: Tensors) -> list[list[int]]:
        with torch.no_grad():
            features = loaded.model.model.get_image_features(**tensors).pooler_output
        return [[IMAGE] * len(feature) for feature in features]

    return TinyModel(loaded, see, spans)


def _qwen_family(name: str, model: Any, images: Any, kind: Any) -> TinyModel:
    def spans(tensors: Tensors) -> list[list[int]]:
        return [[VISION_START, *[IMAGE] * int(grid.prod() // 4), VISION_END] for grid in tensors["image_grid_thw"]]

    def see(pictures: list[Any]) -> Tensors:
        return dict(images(pictures, return_tensors="pt"))

    processor = pictures_only(kind)(images, build_tiny_tokenizer("<image>", picture="<start><image><end>"))
    return TinyModel(ready(name, model, processor), see, spans, "mm_token_type_ids", ((112, 84), (56, 140), (112, 84)))


def _qwen2_vl() -> TinyModel:
    config = Qwen2VLConfig(
        text_config=tiny_text(hidden_size=64, rope_parameters=_MROPE),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "patch_size": 14},
        **_VISION_TOKENS,
    )
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=140 * 140)
    return _qwen_family("qwen2-vl", Qwen2VLForConditionalGeneration(config), images, Qwen2VLProcessor)


def _qwen2_5_vl() -> TinyModel:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=tiny_text(hidden_size=64, num_hidden_layers=3, rope_parameters=_MROPE), vision_config=vision, **_VISION_TOKENS
    )
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=140 * 140)
    return _qwen_family("qwen2.5-vl", Qwen2_5_VLForConditionalGeneration(config), images, Qwen2_5_VLProcessor)


def _qwen3_vl() -> TinyModel:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48, "patch_size": 14,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=tiny_text(num_hidden_layers=3, rope_parameters=_MROPE), vision_config=vision, **_VISION_TOKENS)
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=140 * 140, patch_size=14)
    return _qwen_family("qwen3-vl", Qwen3VLForConditionalGeneration(config), images, Qwen3VLProcessor)


def _internvl() -> TinyModel:
    vision = tiny_vision(image_size=[32, 32], patch_size=[8, 8])
    config = InternVLConfig(vision_config=vision, text_config=tiny_text(model_type="qwen2"), image_token_id=IMAGE, image_seq_length=4)
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = pictures_only(InternVLProcessor)(images, build_tiny_tokenizer(), image_seq_length=4)
    tiles: list[int] = []

    def see(pictures: list[Any]) -> Tensors:
        given = dict(images(pictures, return_tensors="pt"))
        tiles[:] = [int(number) for number in given.pop("num_patches")]
        return given

    def spans(_tensors: Tensors) -> list[list[int]]:
        return [[VISION_START, *[IMAGE] * 4 * number, VISION_END] for number in tiles]

    return TinyModel(ready("internvl", InternVLForConditionalGeneration(config), processor), see, spans)


def _tiled(name: str, model: Any, images: Any, processor: Any = None) -> TinyModel:
    """Idefics3 and SmolVLM: rows of tiles, each after two separators, and the whole picture last."""
    rows: list[list[int]] = []

    def see(pictures: list[Any]) -> Tensors:
        given = dict(images([pictures], return_tensors="pt", return_row_col_info=True))
        rows[:] = [[int(r), int(c)] for r, c in zip(given.pop("rows")[0], given.pop("cols")[0], strict=True)]
        return given

    def spans(_tensors: Tensors) -> list[list[int]]:
        tile = [IMAGE] * 4
        return [
            [*[VISION_START, SEPARATOR, *tile] * (high * wide), VISION_START, SEPARATOR + 1, *tile, VISION_START] for high, wide in rows
        ]

    return TinyModel(ready(name, model, processor), see, spans, images=None if processor else images)


def _idefics3() -> TinyModel:
    config = Idefics3Config(
        vision_config=tiny_vision(), text_config=tiny_text(model_type="llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, build_tiny_tokenizer(), image_seq_len=4)
    return _tiled("idefics3", Idefics3ForConditionalGeneration(config), images, processor)


def _smolvlm() -> TinyModel:
    config = SmolVLMConfig(
        vision_config=tiny_vision(), text_config=tiny_text(model_type="llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return _tiled("smolvlm", SmolVLMForConditionalGeneration(config), images)


def _gemma3() -> TinyModel:
    text = tiny_text(
        model_type="gemma3_text", num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=18, query_pre_attn_scalar=16, tie_word_embeddings=True,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=tiny_vision(model_type="siglip_vision_model"), mm_tokens_per_image=16,
        boi_token_index=VISION_START, eoi_token_index=VISION_END, image_token_index=IMAGE,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zeros otherwise: a model that is blind
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, build_tiny_tokenizer("<start>", soft_image="<image>"), image_seq_length=16)

    def see(pictures: list[Any]) -> Tensors:
        return {"pixel_values": images(pictures, return_tensors="pt")["pixel_values"]}

    def spans(tensors: Tensors) -> list[list[int]]:
        return [[VISION_START, *[IMAGE] * 16, VISION_END]] * len(tensors["pixel_values"])

    return TinyModel(ready("gemma3", model, processor), see, spans, "token_type_ids")


def _mistral3() -> TinyModel:
    config = Mistral3Config(
        vision_config=tiny_vision(model_type="pixtral", image_size=64, head_dim=16),
        text_config=tiny_text(model_type="mistral", sliding_window=None), image_token_index=IMAGE,
    )  # fmt: skip
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16})

    def see(pictures: list[Any]) -> Tensors:
        return dict(processor(pictures, return_tensors="pt"))

    def spans(tensors: Tensors) -> list[list[int]]:
        rows = [(int(height) // 16, int(width) // 16) for height, width in tensors["image_sizes"]]
        return [[*([*[IMAGE] * wide, SEPARATOR] * high)[:-1], VISION_END] for high, wide in rows]

    return TinyModel(ready("mistral3", Mistral3ForConditionalGeneration(config)), see, spans, images=processor)


FAMILIES: dict[str, Callable[[], TinyModel]] = {
    "embedded": _embedded,
    "llava-next": _llava_next,
    "llava-onevision": _llava_onevision,
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
    "qwen3-vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
}
"""Every family that the runtime promises to measure; `embedded` is LLaVA in the embedded model's own shape."""

WITH_PROCESSOR = tuple(name for name in FAMILIES if name not in ("smolvlm", "mistral3"))
"""Families tested from the picture on; the processors of the others cannot be built without torchvision."""

CORE = ("embedded", "llava-next", "qwen2.5-vl")
"""Families that other tests run on too: one grid, any resolution, M-RoPE."""
