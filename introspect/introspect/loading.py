"""Load a multimodal LLM from a folder or a hub id, ready to be measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from introspect import attention
from introspect.errors import ModelLoadError
from introspect.inspection import image_token_of, kinds_input_of, language_model_of, layer_windows, refuse_unsupported
from introspect.processors import load_processor
from introspect_kernels import compile_ahead

EMBEDDED = "embedded"
HEADS_FILE = "visual_heads.json"
"""Visual-head scores that lie beside a model; no part of its fingerprint."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_FILES = (*_WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class LoadedModel:
    """A model whose language model's attention is ours.

    Attributes:
        name: what it was asked for by.
        model: the transformers model, in eval mode.
        processor: its processor.
        tokenizer: the processor's tokenizer.
        fingerprint: SHA-256 over config, weight files and chat template, hex.
        image_token_id: the placeholder of one image token.
        num_layers: layers of the language model.
        num_heads: query heads in each layer.
        num_kv_heads: KV heads in each layer.
        max_context: longest sequence, in tokens.
        eos_ids: tokens that end an answer.
        heads_path: the file of its visual-head scores, where there is one.
        windows: per layer `None` where a query attends to everything before it, or how many entries it
            attends to, itself included. A layer with a window is left alone: it keeps its window whatever
            the budget, no policy sees it, and its statistics are over the window.
        kinds_input: the name of the model input that marks image tokens with 1, for models whose
            attention mask depends on it (image tokens that attend to each other); `None` for the others.
            Such a prompt must be prefilled in one piece, or in pieces that split no picture.
    """

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    fingerprint: str
    image_token_id: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context: int
    eos_ids: frozenset[int]
    heads_path: Path | None = None
    windows: tuple[int | None, ...] = ()
    kinds_input: str | None = None

    def __post_init__(self) -> None:
        """No windows given means none."""
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.num_layers)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokenizer's control tokens."""
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def budgeted(self) -> tuple[int, ...]:
        """The layers that a budget is about: those of full attention."""
        return tuple(layer for layer, window in enumerate(self.windows) if window is None)

    @property
    def language_model(self) -> torch.nn.Module:
        """The language model without its head; it takes `inputs_embeds`."""
        return language_model_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype


def embedded_folder() -> Path:
    """Where the embedded model's files are."""
    return Path(str(files("introspect") / "embedded"))


def load_model(
    name_or_path: str = EMBEDDED, *, device: str = "cpu", dtype: torch.dtype | None = None, heads: Path | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        name_or_path: `"embedded"`, a local folder, or a hub id (only safetensors weights are read).
        device: torch device.
        dtype: what to compute in; by default fp32 on a CPU and the stored dtype elsewhere.
        heads: visual-head scores; by default the `visual_heads.json` beside the model, if there is one.

    Raises:
        ModelLoadError: there is no such model, or its attention cannot be measured.
        HeadScoresError: `heads` cannot be read or are another model's.
    """
    attention.install()
    folder = folder_of(name_or_path)
    compute = dtype or (torch.float32 if device == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(folder)
        refuse_unsupported(config)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=compute, use_safetensors=True)
        model = model.to(device).eval()
        processor = load_processor(folder, config)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError) as problem:
        raise ModelLoadError(f"cannot load {name_or_path!r} as an image-text-to-text model: {problem}") from problem
    loaded = prepare(name_or_path, model, processor, fingerprint_of(folder))
    if loaded.device.type == "cpu":
        compile_ahead(loaded.dtype)
    if heads is not None:
        from introspect.heads.visual_heads import read_visual_heads

        read_visual_heads(heads, loaded)  # what was named must fit; what only lies beside the model is read when it is asked for
        return replace(loaded, heads_path=heads)
    return replace(loaded, heads_path=folder / HEADS_FILE) if (folder / HEADS_FILE).is_file() else loaded


def prepare(name: str, model: Any, processor: Any, fingerprint: str) -> LoadedModel:
    """Make an already built model measurable: its language model's attention becomes ours.

    Raises:
        ModelLoadError: its attention cannot be measured.
    """
    attention.install()
    refuse_unsupported(model.config)
    try:
        model.set_attn_implementation({"text_config": attention.NAME})
    except ValueError as problem:
        raise ModelLoadError(f"{model.config.model_type}: its language model takes no attention function of ours: {problem}") from problem
    text = model.config.get_text_config(decoder=True)
    sizes = {
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        "max_context": int(text.max_position_embeddings),
    }
    tokenizer = getattr(processor, "tokenizer", processor)
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = ends if ends is not None else getattr(tokenizer, "eos_token_id", None)
    eos_ids = frozenset() if ends is None else frozenset(ends) if isinstance(ends, (list, tuple)) else frozenset({int(ends)})
    return LoadedModel(
        name=name,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        image_token_id=image_token_of(model.config),
        eos_ids=eos_ids,
        windows=layer_windows(model, **sizes),
        kinds_input=kinds_input_of(model),
        **sizes,
    )


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over a model folder's config, weight files and chat template, hex."""
    digest = hashlib.sha256()
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    for path in [folder / "config.json", *weights, folder / "chat_template.jinja", folder / "chat_template.json"]:
        if path.exists():
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def folder_of(name_or_path: str) -> Path:
    """The folder of a model's files; those of a hub id are downloaded where they are not here.

    Raises:
        ModelLoadError: there is none.
    """
    if name_or_path == EMBEDDED:
        return embedded_folder()
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name_or_path.startswith((".", "/", "~")):
        raise ModelLoadError(f"{name_or_path!r} is not a folder with a model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        raise ModelLoadError(f"{name_or_path!r} is neither a folder here nor a model that the hub gave: {problem}") from problem
