"""A model without its weights: what prompts are encoded with where another process computes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from introspect.errors import ModelLoadError
from introspect.loading import LoadedModel, folder_of
from introspect.processors import load_processor


@dataclass(frozen=True)
class ModelFacts:
    """What a `LoadedModel` knows beside its weights and its processor; see there."""

    name: str
    fingerprint: str
    image_token_id: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context: int
    eos_ids: frozenset[int]
    heads_path: Path | None
    windows: tuple[int | None, ...]
    kinds_input: str | None


def facts_of(loaded: LoadedModel) -> ModelFacts:
    """What whoever has loaded the model can tell of it."""
    return ModelFacts(**{field.name: getattr(loaded, field.name) for field in fields(ModelFacts)})


def load_outline(facts: ModelFacts) -> LoadedModel:
    """A model on the `meta` device, which can be asked everything but to compute.

    Args:
        facts: from who has loaded it, on this machine.

    Raises:
        ModelLoadError: its files are no longer there.
    """
    folder = folder_of(facts.name)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config).eval()
        processor = load_processor(folder, config)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
        raise ModelLoadError(f"cannot read the files of {facts.name!r} beside its engine: {problem}") from problem
    tokenizer = getattr(processor, "tokenizer", processor)
    return LoadedModel(model=model, processor=processor, tokenizer=tokenizer, **vars(facts))
