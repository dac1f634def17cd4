"""What the CPU study times: the engine with statistics on and off, and `transformers.generate`, on equal inputs.

The larger model has random weights, for time does not depend on them. An arm gives the
seconds to the first token (the prompt is read, one token decoded) and of each later token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from introspect.engine import Engine
from introspect.loading import LoadedModel, embedded_folder, load_model, prepare
from introspect.prompt import EncodedPrompt, encoded_from_inputs
from introspect.types import Budget, Request, SamplingParams
from introspect_kernels import Segment
from introspect_probes.embedded.model import build_processor
from introspect_probes.embedded.tokenizer import BOS, EOS, IMAGE, PAD, build_tokenizer, token_ids

GRID = 12
TEXT_AFTER = 64


@dataclass(frozen=True)
class Times:
    """Seconds to the first token, and of each later token (a step of the whole batch)."""

    first: float
    steps: tuple[float, ...]

    @property
    def whole(self) -> float:
        """Seconds from the prompt to the last token."""
        return self.first + sum(self.steps)

    @property
    def step(self) -> float:
        """Median seconds of a later token."""
        return float(np.median(self.steps))


def build_100m(attention: str = "sdpa") -> LlavaForConditionalGeneration:
    """A LLaVA of about 100 M parameters with random weights, the same for every attention implementation."""
    torch.manual_seed(0)
    bos, eos, pad, image = token_ids(build_tokenizer(), BOS, EOS, PAD, IMAGE)
    text = LlamaConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=16_384, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, image_size=8 * GRID, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image, image_seq_length=GRID * GRID, vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = attention
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def load_pair(name: str, attention: str = "sdpa") -> tuple[LoadedModel, LlavaForConditionalGeneration]:
    """The model measured by us, and itself as transformers runs it; neither ever ends an answer."""
    if name == "embedded":
        loaded = load_model()
        plain = LlavaForConditionalGeneration.from_pretrained(embedded_folder(), attn_implementation=attention, dtype=loaded.dtype).eval()
    else:
        loaded, plain = load_100m(), build_100m(attention)
    plain.generation_config.eos_token_id = None  # what a call leaves open is filled from here
    return replace(loaded, eos_ids=frozenset()), plain


def load_100m() -> LoadedModel:
    """The random model measured by us; it never ends an answer."""
    return replace(prepare("random-100m", build_100m(), build_processor(), "0" * 64), eos_ids=frozenset())


def inputs_of(plain: Any, tokens: int, seed: int, *, picture: bool = True) -> dict[str, torch.Tensor]:
    """Model inputs for one prompt of so many tokens: text, a picture of noise, text."""
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(16, plain.config.text_config.vocab_size, tokens))
    ids[0] = 1
    if not picture:
        return {"input_ids": ids[None], "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
    count = GRID * GRID
    start = max(1, tokens - count - TEXT_AFTER)
    ids[start : start + count] = plain.config.image_token_id
    pixels = torch.from_numpy(rng.standard_normal((1, 3, 8 * GRID, 8 * GRID)).astype(np.float32)).to(plain.dtype)
    return {"input_ids": ids[None], "attention_mask": torch.ones(1, tokens, dtype=torch.long), "pixel_values": pixels}


def prompts_of(
    loaded: LoadedModel, inputs: list[dict[str, torch.Tensor]], new: int, *, signals: bool, budget: Budget | None = None
) -> list[EncodedPrompt]:
    """The same inputs as the engine takes them."""
    made = []
    for number, one in enumerate(inputs):
        ids = one["input_ids"][0]
        segments = np.where(ids.numpy() == loaded.image_token_id, int(Segment.IMAGE), int(Segment.QUESTION)).astype(np.uint8)
        segments[0] = Segment.SINK
        request = Request(f"r{number}", (), SamplingParams(max_tokens=new), budget or Budget(), signals=signals)
        made.append(encoded_from_inputs(loaded, request, one, segments))
    return made


def run_engine(engine: Engine, prompts: list[EncodedPrompt], watch: Callable[[], None] | None = None) -> Times:
    """Answer a batch of prompts of one length; `watch` is called at each token."""
    marks, began = [], time.perf_counter()
    for step in engine.generate_encoded(prompts):
        if step.token_id >= 0 and step.prompt.request_id == "r0":
            marks.append(time.perf_counter())
            if watch is not None:
                watch()
    return _times(began, marks)


class _Clock(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Notes when each token was chosen, and never stops."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        self.marks.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@torch.inference_mode()
def run_transformers(plain: Any, inputs: list[dict[str, torch.Tensor]], new: int, *, attentions: bool = False) -> Times:
    """`transformers.generate`, greedily; with `attentions` it gives every step's maps, the only other way to the statistics."""
    clock, began = _Clock(), time.perf_counter()
    batch = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
    plain.generate(**batch, generation_config=_greedy(new, attentions), stopping_criteria=StoppingCriteriaList([clock]))
    return _times(began, clock.marks)


@torch.inference_mode()
def run_eager_after_sdpa(plain: Any, inputs: dict[str, torch.Tensor], new: int) -> Times:
    """Like `run_transformers` with attentions, but the prompt is read with SDPA and without maps, which would not fit in memory."""
    clock, began = _Clock(), time.perf_counter()
    cache = DynamicCache()
    plain.set_attn_implementation("sdpa")
    plain.model(input_ids=inputs["input_ids"][:, :-1], past_key_values=cache, use_cache=True)
    plain.set_attn_implementation("eager")
    plain.generate(
        **inputs, past_key_values=cache, generation_config=_greedy(new, attentions=True), stopping_criteria=StoppingCriteriaList([clock])
    )
    return _times(began, clock.marks)


def _greedy(new: int, attentions: bool) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0, output_attentions=attentions, return_dict_in_generate=True
    )


def _times(began: float, marks: list[float]) -> Times:
    return Times(marks[0] - began, tuple(float(d) for d in np.diff(marks)))
