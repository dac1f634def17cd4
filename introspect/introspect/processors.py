"""A model's processor; where its video part cannot be had, one that takes pictures all the same."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoProcessor
from transformers.models.auto.processing_auto import processor_class_from_name

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_VIDEO = "video_processor"


def load_processor(folder: Path, config: Any) -> Any:
    """The processor in the folder of a model of the configuration given.

    Several processors cannot be built without torchvision although only their
    video part needs it, and the runtime takes no videos. They are then built
    without that part.

    Raises:
        OSError: there is none.
        ValueError: what is there takes no pictures, or its tokenizer does not tell where tokens stand.
        ImportError: it needs a package that is not installed.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (ImportError, OSError, ValueError):
        kind = _class_of(folder, config)
        if kind is None or not can_do_without_video(kind):
            raise
        processor = pictures_only(kind).from_pretrained(folder)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"expected a processor with an image processor, found only {type(processor).__name__}")
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"expected a tokenizer that tells where tokens stand in a text (a fast one), not {type(tokenizer).__name__}")
    return processor


def can_do_without_video(kind: Any) -> bool:
    """Whether a processor class has a video part and can be built without it (SmolVLM's, for one, cannot)."""
    video = inspect.signature(kind.__init__).parameters.get(_VIDEO)
    return video is not None and video.default is None


def pictures_only(kind: Any) -> Any:
    """A processor class without its video part."""
    attributes = [name for name in kind.get_attributes() if name != _VIDEO]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _cls: attributes), "__module__": kind.__module__})


def _class_of(folder: Path, config: Any) -> Any:
    """The class that a folder's files name, or the one that transformers uses for the model; `None` if neither is known."""
    for file in _NAMED_IN:
        path = folder / file
        name = json.loads(path.read_text(encoding="utf-8")).get("processor_class") if path.is_file() else None
        if name is not None:
            return processor_class_from_name(name)
    return PROCESSOR_MAPPING.get(type(config), None)
