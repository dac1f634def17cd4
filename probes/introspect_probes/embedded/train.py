"""Train the embedded model: `python -m introspect_probes.embedded.train --out DIR`.

Three stages. First the vision tower and the projector learn dense labels (digit
and colour of every cell), read *behind* the projector, on clear scenes and then on all; then the language model
joins and learns packed questions, the dense labels kept as a small auxiliary
loss. After this the model reads any place it is told to, and cannot find
anything it is told of; so the third stage asks mostly for that, and has the
image's features learn the words' own directions and their places, so that
words and picture can meet in attention. Why each stage: DECISIONS.md.

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
from dataclasses import asdict, dataclass
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
    SEARCH_MIX,
    TRAINING_MIX,
    Batch,
    PackedBatches,
)
from introspect_probes.embedded.evaluate import accuracy_by_kind
from introspect_probes.embedded.model import build_model, build_processor, forward_packed, image_features
from introspect_probes.embedded.shape import IMAGE_SIZE, PATCH_SIZE
from introspect_probes.embedded.tokenizer import token_ids
from introspect_probes.worlds.scene import CELL_PIXELS, COLOR_NAMES, NATURAL, SceneStyle

EASY = SceneStyle(clarity={"clear": 1.0}, fill=(0.7, 1.0))
"""The first steps: well-filled, clear scenes."""


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `stop` - 1 (a part of them, where the style changes midway): what they see and at what rate."""

    number: int
    start: int
    stop: int
    steps: int
    batch: int
    lr: float
    mix: dict[str, float] | None
    style: SceneStyle


@dataclass(frozen=True)
class Plan:
    """Every number of a training run."""

    seed: int = 0
    easy_steps: int = 500
    dense_steps: int = 1500
    joint_steps: int = 1800
    search_steps: int = 900
    dense_batch: int = 64
    joint_batch: int = 24
    dense_lr: float = 2.5e-3
    joint_lr: float = 1.0e-3
    min_lr_share: float = 0.03
    warmup: int = 100
    weight_decay: float = 0.03
    dense_weight: float = 0.25
    align_weight: float = 0.25
    checkpoints: int = 12


class DenseReader(nn.Module):
    """Reads digit and colour of each cell from its projected patches (training only).

    The mean of the patches is what the language model will find it easiest to
    use; reading the digit from all of them in order as well breaks the symmetry
    early, and the shapes are learned in half the steps.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self._side, self._per_cell = IMAGE_SIZE // PATCH_SIZE, CELL_PIXELS // PATCH_SIZE
        self.digit = nn.Linear(hidden_size, NUM_DIGIT_CLASSES)
        self.color = nn.Linear(hidden_size, NUM_COLOR_CLASSES)
        self.ordered_digit = nn.Linear(hidden_size * self._per_cell**2, NUM_DIGIT_CLASSES)
        self.place = nn.Linear(hidden_size, (self._side // self._per_cell) ** 2)

    def align(self, features: torch.Tensor, batch: Batch, digit_words: torch.Tensor, color_words: torch.Tensor) -> torch.Tensor:
        """How badly the cells' features point along the words for what they show, and tell their place.

        `digit_words [10, hidden]` and `color_words [colours, hidden]` are the language model's own embeddings.
        """
        cells = self._side // self._per_cell
        mean = features.float().unflatten(1, (cells, self._per_cell, cells, self._per_cell)).mean(dim=(2, 4)).flatten(1, 2)
        place = torch.arange(cells**2).expand(mean.shape[0], -1)
        digits = batch.digits.masked_fill(batch.digits >= len(digit_words), IGNORE)
        colors = batch.colors.masked_fill(batch.colors >= len(color_words), IGNORE)
        return (
            functional.cross_entropy((mean @ digit_words.float().T).flatten(0, 1), digits.flatten(), ignore_index=IGNORE)
            + functional.cross_entropy((mean @ color_words.float().T).flatten(0, 1), colors.flatten(), ignore_index=IGNORE)
            + functional.cross_entropy(self.place(mean).flatten(0, 1), place.flatten())
        )

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Summed mean cross-entropies over cells; `features [batch, image tokens, hidden]`."""
        cells = self._side // self._per_cell
        grid = features.float().unflatten(1, (cells, self._per_cell, cells, self._per_cell))
        mean = grid.mean(dim=(2, 4)).flatten(0, 2)
        ordered = grid.transpose(2, 3).flatten(3).flatten(0, 2)
        digits, colors = batch.digits.flatten(), batch.colors.flatten()
        return (
            functional.cross_entropy(self.digit(mean), digits)
            + functional.cross_entropy(self.color(mean), colors)
            + 0.5 * functional.cross_entropy(self.ordered_digit(ordered), digits)
        )


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
        self.model = build_model()
        self.model.model.vision_tower.set_attn_implementation("eager")  # twice as fast to train on a CPU at this size
        self.reader = DenseReader(self.model.lm_head.in_features)
        self.processor = build_processor()
        digit_tokens = token_ids(self.processor.tokenizer, *(f"▁{digit}" for digit in range(10)))
        color_tokens = token_ids(self.processor.tokenizer, *(f"▁{color}" for color in COLOR_NAMES))
        self.words = torch.tensor(digit_tokens), torch.tensor(color_tokens)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.parameters = dict(self.model.named_parameters()) | {f"reader.{k}": v for k, v in self.reader.named_parameters()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), betas=(0.9, 0.98), weight_decay=plan.weight_decay)

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.plan.dense_steps + self.plan.joint_steps + self.plan.search_steps

    def save(self) -> None:
        """Write weights and optimiser state, atomically, so that the run can go on from here."""
        tensors = {f"weight/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(p, {}).items()}
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
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if f"{key}/{name}" in state.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                        self.optimizer.state[p][key] = state.get_tensor(f"{key}/{name}")
        self.step, self.curve, self.seconds = int(notes["step"]), json.loads(notes["curve"]), float(notes["seconds"])
        return True

    def export(self, folder: Path) -> None:
        """Write the model in bf16 with its processor, in Hugging Face format."""
        stored = copy.deepcopy(self.model).bfloat16()
        stored.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def train(self, log_every: int = 50) -> None:
        """Run all remaining steps."""
        marks = log_spaced(self.steps, self.plan.checkpoints)
        bar = tqdm(total=self.steps, initial=self.step, desc="training", unit="step")
        started, losses = time.perf_counter(), []
        while self.step < self.steps:
            stage = self.stage
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
                    self._checkpoint()
                if self.step % 500 == 0 or self.step == stage.stop:
                    self.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self.save()
        bar.close()

    @property
    def stage(self) -> Stage:
        """The stage that the next step belongs to."""
        plan = self.plan
        if self.step < plan.dense_steps:
            stop = plan.easy_steps if self.step < plan.easy_steps else plan.dense_steps
            style = EASY if self.step < plan.easy_steps else NATURAL
            return Stage(1, 0, stop, plan.dense_steps, plan.dense_batch, plan.dense_lr, None, style)
        joint_stop = plan.dense_steps + plan.joint_steps
        if self.step < joint_stop:
            return Stage(2, plan.dense_steps, joint_stop, plan.joint_steps, plan.joint_batch, plan.joint_lr, TRAINING_MIX, NATURAL)
        return Stage(3, joint_stop, self.steps, plan.search_steps, plan.joint_batch, plan.joint_lr, SEARCH_MIX, NATURAL)

    def _checkpoint(self) -> None:
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        save_file(weights, self.folder / f"checkpoint-{self.step:06d}.safetensors")

    def _batches(self, stage: Stage) -> Iterator[Batch]:
        data = PackedBatches(self.processor.tokenizer, stage.batch, self.plan.seed, self.step, mix=stage.mix, style=stage.style)
        loader = DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)
        return itertools.islice(loader, stage.stop - self.step)

    def _update(self, batch: Batch, stage: Stage) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.plan, self.step - stage.start, stage.steps, stage.lr)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if stage.mix is None:
                loss = self.reader(image_features(self.model, batch.pixels), batch)
            else:
                logits, features = forward_packed(self.model, batch)
                loss = answer_loss(logits, batch) + self.plan.dense_weight * self.reader(features, batch)
                if stage.mix is SEARCH_MIX:
                    table = self.model.lm_head.weight
                    loss = loss + self.plan.align_weight * self.reader.align(features, batch, table[self.words[0]], table[self.words[1]])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        return float(loss.detach())


def log_spaced(steps: int, count: int) -> set[int]:
    """About `count` steps, evenly spaced in the logarithm, the last one included."""
    return {round(math.exp(math.log(steps) * (i + 1) / count)) for i in range(count)}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model, the run's state and its checkpoints.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    dense_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = Plan.dense_steps,
    joint_steps: Annotated[int, typer.Option(help="Steps of the second stage.")] = Plan.joint_steps,
    search_steps: Annotated[int, typer.Option(help="Steps of the third stage.")] = Plan.search_steps,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the embedded model, evaluate it as stored, and write its training record."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(Plan(seed=seed, dense_steps=dense_steps, joint_steps=joint_steps, search_steps=search_steps), out)
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
