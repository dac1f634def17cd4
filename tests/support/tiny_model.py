"""A tiny multimodal model with random weights, and prompts for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_tokenizer import VOCAB, build_tiny_tokenizer

from introspect.loading import LoadedModel, prepare
from introspect.prompt import EncodedPrompt, encoded_from_inputs
from introspect.types import Budget, Request, SamplingParams
from introspect_kernels import Segment

FIRST_TEXT, LAST_TEXT = 10, 266
SIZES = ((60, 40), (44, 84), (60, 40))
"""Width and height of the first, second and third picture of a prompt."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TinyModel:
    """A loaded model, and how to make a prompt for it.

    Attributes:
        loaded: the model, measurable.
        see: pictures to image tensors, by the PIL image processor.
        spans: from those tensors, the token ids that stand for each picture, separators and all.
        needs_kinds: the model input that tells image tokens from text, where `generate` wants it.
        sizes: width and height of the first, second and third picture.
        images: the image processor, where no processor of the family can be built around it.
    """

    loaded: LoadedModel
    see: Callable[[list[Image.Image]], Tensors]
    spans: Callable[[Tensors], list[list[int]]]
    needs_kinds: str | None = None
    sizes: tuple[tuple[int, int], ...] = SIZES
    images: Any = None

    def inputs(self, seed: int, pictures: int = 1) -> Tensors:
        """Model inputs of a prompt: a text token, then two more before each picture, and twelve after the last."""
        tensors = self.see([picture(seed + 10 * n, *self.sizes[n]) for n in range(pictures)])
        text = np.random.default_rng(seed + 100).integers(FIRST_TEXT, LAST_TEXT, 12 + 2 * pictures).tolist()
        ids = [1]
        for number, span in enumerate(self.spans(tensors)):
            ids += [*text[2 * number : 2 * number + 2], *span]
        return {"input_ids": torch.tensor([ids + text[2 * pictures :]]), **tensors}

    def vision_kwargs(self, given: Tensors) -> Tensors:
        """What `generate` wants beside the token ids."""
        kwargs = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
        if self.needs_kinds is not None:
            kwargs[self.needs_kinds] = (given["input_ids"] == self.loaded.image_token_id).int()
        return kwargs

    def prompt(self, seed: int = 0, *, max_tokens: int = 6, budget: Budget | None = None, pictures: int = 1) -> EncodedPrompt:
        """A prompt with random pictures: sink, template, image (with template between), context, question, template."""
        inputs = self.inputs(seed, pictures)
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


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiny_text(**changes: Any) -> dict[str, Any]:
    """Configuration of a language model of two layers, four query heads and two KV heads."""
    return {
        "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "tie_word_embeddings": False, **changes,
    }  # fmt: skip


def tiny_vision(**changes: Any) -> dict[str, Any]:
    """Configuration of a vision tower of two layers over 32 x 32 pixels."""
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        **changes,
    }  # fmt: skip


def ready(name: str, model: Any, processor: Any = None) -> LoadedModel:
    """A model made measurable, its attention sharpened; without a processor it has a tokenizer only.

    Random weights attend almost evenly and answer almost evenly, so that a wrong
    mask or position would hardly show; larger query, key and output weights make it show.
    """
    with torch.no_grad():
        for path, weight in model.named_parameters():
            is_text = "language_model" in path or "text_model" in path
            if is_text and path.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_(6)
            elif path == "lm_head.weight" or (path.endswith("v_proj.weight") and is_text):
                weight.mul_(5)
    return prepare(name, model.eval(), processor or build_tiny_tokenizer(), name.ljust(64, "0"))
