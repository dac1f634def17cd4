"""Train the embedded model: `python -m introspect_probes.embedded.train --out DIR`, or a small one with `--size study`.

Two stages. First the vision tower and the projector learn dense labels (digit,
colour and place of every cell), read *behind* the projector and along the
language model's own embeddings of the words, on clear scenes and then on all;
then the language model joins and learns packed questions, the dense labels kept
as a small auxiliary loss. Why so: DECISIONS.md. The forward passes are compiled,
which takes a C++ compiler.

The run is resumable and its batches depend on seed and step only, so that its
log-spaced checkpoints can be made again.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from introspect.provenance import provenance
from introspect_probes.embedded.batches import (
    IGNORE,
    NUM_COLOR_CLASSES,
    NUM_DIGIT_CLASSES,
    Batch,
    PackedBatches,
)
from introspect_probes.embedded.checkpoints import save_checkpoint
from introspect_probes.embedded.evaluate import accuracy_by_kind
from introspect_probes.embedded.model import build_model, build_processor, forward_packed, image_features, vision_tower
from introspect_probes.embedded.plan import PLANS, Plan, Stage
from introspect_probes.embedded.shape import IMAGE_SIZE
from introspect_probes.embedded.tokenizer import token_ids
from introspect_probes.worlds.scene import CELL_PIXELS, COLOR_NAMES

STATE_KEYS = ("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq")
"""What Muon and AdamW remember of a parameter."""


class DenseReader(nn.Module):
    """Reads digit, colour and place of each cell from its projected patches (training only).

    The words' part has each patch point along the language model's own
    embeddings of the words for what its cell shows, so that a question's words
    can find the picture's cells in attention. The others read the cell's mean,
    and its patches in order: that breaks the symmetry early, and the shapes are
    learned in half the steps. The place is not asked of a tower that has none to
    tell: Qwen2-VL's knows distances only, and M-RoPE gives its tokens their places.
    """

    digit_tokens: torch.Tensor
    color_tokens: torch.Tensor

    def __init__(self, hidden_size: int, patch: int, digit_tokens: list[int], color_tokens: list[int], *, places: bool = True) -> None:
        super().__init__()
        self._per_cell = CELL_PIXELS // patch
        self._cells = IMAGE_SIZE // CELL_PIXELS
        self.digit = nn.Linear(hidden_size, NUM_DIGIT_CLASSES)
        self.color = nn.Linear(hidden_size, NUM_COLOR_CLASSES)
        self.ordered_digit = nn.Linear(hidden_size * self._per_cell**2, NUM_DIGIT_CLASSES)
        self.place = nn.Linear(hidden_size, self._cells**2) if places else None
        self.register_buffer("digit_tokens", torch.tensor(digit_tokens), persistent=False)
        self.register_buffer("color_tokens", torch.tensor(color_tokens), persistent=False)

    def forward(self, features: torch.Tensor, batch: Batch, embeddings: torch.Tensor) -> torch.Tensor:
        """Summed mean cross-entropies; `features [batch, image tokens, hidden]`, `embeddings [vocabulary, hidden]`."""
        split = (self._cells, self._per_cell, self._cells, self._per_cell)
        patches = features.float().unflatten(1, split).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        mean = patches.mean(dim=1)
        digits, colors = batch.digits.flatten(), batch.colors.flatten()
        read = (
            functional.cross_entropy(self.digit(mean), digits)
            + functional.cross_entropy(self.color(mean), colors)
            + 0.5 * functional.cross_entropy(self.ordered_digit(patches.flatten(1)), digits)
        )
        digit_words, color_words = embeddings[self.digit_tokens].float(), embeddings[self.color_tokens].float()
        total = read + _per_patch(patches @ digit_words.T, digits) + _per_patch(patches @ color_words.T, colors)
        if self.place is None:
            return total
        return total + _per_patch(self.place(patches), torch.arange(self._cells**2).repeat(len(features)))


def _per_patch(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `logits [cells, patches, classes]`; cells of a class beyond them (empty, covered) are left out."""
    cells, patches, known = logits.shape
    wanted = classes.masked_fill(classes >= known, IGNORE)[:, None].expand(cells, patches)
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy on the answers' tokens."""
    wanted = batch.labels != IGNORE
    losses = functional.cross_entropy(logits[wanted].float(), batch.labels[wanted], reduction="none")
    weights = batch.weights[wanted]
    return (losses * weights).sum() / weights.sum()


def learning_rate(plan: Plan, step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to `min_lr_share` of the peak."""
    if step < plan.warmup:
        return peak * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, steps - plan.warmup)
    return peak * (plan.min_lr_share + (1 - plan.min_lr_share) * 0.5 * (1 + math.cos(math.pi * progress)))


class Run:
    """One training run with its state on disk under `folder`."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.folder = plan, folder
        self.model = build_model(plan.shape)
        tower = vision_tower(self.model)
        tower.set_attn_implementation("eager")  # twice as fast to train on a CPU at this size
        if plan.eager:
            self.model.model.language_model.set_attn_implementation("eager")
        self.processor = build_processor(plan.shape)
        digit_tokens = token_ids(self.processor.tokenizer, *(f"▁{digit}" for digit in range(10)))
        color_tokens = token_ids(self.processor.tokenizer, *(f"▁{color}" for color in COLOR_NAMES))
        self.reader = DenseReader(self.model.lm_head.in_features, plan.shape.patch, digit_tokens, color_tokens, places=not plan.shape.mrope)
        self.model.model.language_model.compile(dynamic=False)
        if not plan.shape.mrope:  # that tower goes through its pictures one by one, which no compiler of ours takes
            tower.compile(dynamic=False)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.parameters = dict(self.model.named_parameters()) | {f"reader.{k}": v for k, v in self.reader.named_parameters()}
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon (Jordan et al., 2024) for the layers' matrices, at AdamW's update size; AdamW for all else."""
        parts = ("layers", "projector", "blocks", "merger")
        matrices = {name: p for name, p in self.parameters.items() if p.ndim == 2 and any(part in name for part in parts)}
        others = [p for name, p in self.parameters.items() if name not in matrices]
        decay = self.plan.weight_decay
        return [
            torch.optim.Muon(matrices.values(), weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=decay),
        ]

    def save(self) -> None:
        """Write weights and optimiser state, atomically, so that the run can go on from here."""
        tensors = {f"weight/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for optimizer in self.optimizers:
                tensors |= {f"{key}/{name}": value for key, value in optimizer.state.get(p, {}).items()}
        path = self.folder / "state.safetensors"
        notes = {
            "step": str(self.step),
            "curve": json.dumps(self.curve),
            "seconds": str(self.seconds),
            "plan": json.dumps(asdict(self.plan)),
        }
        save_file({k: v.clone() for k, v in tensors.items()}, path.with_suffix(".part"), metadata=notes)
        path.with_suffix(".part").replace(path)

    def resume(self) -> bool:
        """Load the state that `save` left, if any of the same plan is there."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as state, torch.no_grad():
            notes = state.metadata()
            if json.loads(notes["plan"]) != asdict(self.plan):
                raise typer.BadParameter(f"{path} was made by another plan; give another --out or remove it")
            for name, p in self.parameters.items():
                p.copy_(state.get_tensor(f"weight/{name}"))
                for optimizer, keys in zip(self.optimizers, STATE_KEYS, strict=True):
                    for key in keys:
                        if f"{key}/{name}" in state.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                            optimizer.state[p][key] = state.get_tensor(f"{key}/{name}")
        self.step, self.curve, self.seconds = int(notes["step"]), json.loads(notes["curve"]), float(notes["seconds"])
        return True

    def export(self, folder: Path) -> None:
        """Write the model in bf16 with its processor, in Hugging Face format."""
        stored = copy.deepcopy(self.model).bfloat16()
        stored.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def train(self, log_every: int = 50) -> None:
        """Run all remaining steps."""
        steps, marks = self.plan.steps, self.plan.marks()
        if self.step == 0:
            save_checkpoint(self.model, self.folder, self.step)
        bar = tqdm(total=steps, initial=self.step, desc="training", unit="step")
        started, losses = time.perf_counter(), []
        while self.step < steps:
            stage = self.plan.stage(self.step)
            for batch in self._batches(stage):
                losses.append(self._update(batch, stage))
                self.step += 1
                bar.update()
                if self.step % log_every == 0 or self.step == stage.stop:
                    mean = sum(losses) / len(losses)
                    self.curve.append({"step": self.step, "loss": round(mean, 4), "stage": stage.number})
                    bar.set_postfix(loss=f"{mean:.3f}", stage=stage.number)
                    losses.clear()
                if self.step in marks:
                    save_checkpoint(self.model, self.folder, self.step)
                if self.step % 500 == 0 or self.step == stage.stop:
                    self.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self.save()
        bar.close()

    def _batches(self, stage: Stage) -> Iterator[Batch]:
        data = PackedBatches(
            self.processor.tokenizer, self.plan.shape, stage.batch, self.plan.seed, self.step, mix=stage.mix, style=stage.style
        )
        loader = DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)
        return itertools.islice(loader, stage.stop - self.step)

    def _update(self, batch: Batch, stage: Stage) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.plan, self.step - stage.start, stage.steps, stage.lr)
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            table = self.model.lm_head.weight
            if stage.mix is None:
                loss = self.reader(image_features(self.model, batch.pixels), batch, table)
            else:
                logits, features = forward_packed(self.model, batch)
                loss = answer_loss(logits, batch) + self.plan.dense_weight * self.reader(features, batch, table)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model, the run's state and its checkpoints.")],
    size: Annotated[str, typer.Option(help=f"Which model: {', '.join(PLANS)}.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    dense_steps: Annotated[int | None, typer.Option(help="Steps of the first stage.", show_default="by size")] = None,
    joint_steps: Annotated[int | None, typer.Option(help="Steps of the second stage.", show_default="by size")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train a model, evaluate it as stored, and write its training record."""
    if size not in PLANS:
        raise typer.BadParameter(f"unknown size {size!r}: choose among {', '.join(PLANS)}")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    plan = replace(PLANS[size], seed=seed)
    plan = plan if dense_steps is None else replace(plan, dense_steps=dense_steps)
    run = Run(plan if joint_steps is None else replace(plan, joint_steps=joint_steps), out)
    run.resume()
    run.train()
    run.export(out / "model")
    record = {
        "plan": asdict(run.plan),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seconds": round(run.seconds),
        "curve": run.curve,
        "accuracy": {pool: accuracy_by_kind(out / "model", pool) for pool in ("model", "test")},
        "provenance": provenance(),
    }
    (out / "model" / "training_record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(record["accuracy"], indent=1))


if __name__ == "__main__":
    typer.run(main)
