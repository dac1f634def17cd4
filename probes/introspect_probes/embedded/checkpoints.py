"""The log-spaced checkpoints of a training run: written, and loaded as models that the engine runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from introspect.loading import LoadedModel, load_model
from introspect_probes.errors import ProbesError


def save_checkpoint(model: PreTrainedModel, run: Path, step: int) -> None:
    """Write the weights behind a step, in bf16."""
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, _path(run, step))


def checkpoint_steps(run: Path) -> list[int]:
    """Steps behind which a training run kept its weights, 0 being the untrained ones.

    Raises:
        ProbesError: the folder is not that of a finished run.
    """
    steps = sorted(int(path.stem.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*.safetensors"))
    if len(steps) < 2 or not (run / "model" / "config.json").is_file():
        raise ProbesError(
            f"{run} is no finished training run: expected checkpoint-*.safetensors and model/; "
            "make one with `python -m introspect_probes.embedded.train --size study --out DIR`"
        )
    return steps


def load_checkpoint_model(run: Path, step: int) -> LoadedModel:
    """The model as it was behind a step.

    Args:
        run: folder of a finished training run.
        step: one of `checkpoint_steps`.

    Raises:
        ProbesError: the weights are another model's.
    """
    path = _path(run, step)
    loaded = load_model(str(run / "model"))
    found = loaded.model.load_state_dict(load_file(path), strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {"lm_head.weight"}:  # the last is tied to the words' embeddings
        raise ProbesError(
            f"{path} does not fit {run / 'model'}: {len(found.missing_keys)} tensors missing, {found.unexpected_keys[:2]} unknown"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return replace(loaded, name=f"{run.name}@{step}", fingerprint=hashlib.sha256(f"{loaded.fingerprint} {digest}".encode()).hexdigest())


def _path(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:06d}.safetensors"
