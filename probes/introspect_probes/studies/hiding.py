"""Fine-tuning the embedded model so that its answers no longer show that they look at the image.

The training of Pruthi et al. (Learning to Deceive with Attention-Based Explanations, ACL 2020, arXiv 1909.07913): the
answers' own loss, and beside it -log(1 - mass) of every head's attention to the image in every row that predicts a
token of an answer. Those are the rows that probes read. What the picture shows can still reach an answer by way of the
question's tokens, whose rows nothing is asked of.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from introspect.loading import embedded_folder
from introspect.provenance import provenance
from introspect_probes.embedded.batches import IGNORE, SEARCH_MIX, Batch, PackedBatches
from introspect_probes.embedded.model import image_features
from introspect_probes.embedded.shape import EMBEDDED
from introspect_probes.embedded.train import answer_loss
from introspect_probes.errors import ProbesError
from introspect_probes.worlds.scene import NATURAL

RECORD = "hiding_record.json"
_SAVED = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Hiding:
    """Every number of the fine-tuning.

    Attributes:
        steps: updates of the language model; the vision tower and the projector are left alone.
        batch: pictures an update, each with about nine questions.
        lr: AdamW's step size at its peak, behind a short warm-up; it falls to nothing in a straight line.
        weight: of the penalty beside the answers' loss.
        seed: of the batches.
        save_every: steps between states to go on from.
    """

    steps: int = 300
    batch: int = 8
    lr: float = 3e-4
    weight: float = 1.0
    seed: int = 77
    save_every: int = 25


def hide(folder: Path, plan: Hiding) -> dict[str, Any]:
    """Fine-tune, and write the model to `folder`; an interrupted run goes on where it was, a finished one is not repeated.

    Returns:
        The record that lies beside the model: the plan, and both losses as they went.

    Raises:
        ProbesError: the folder holds a run of another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RECORD).exists():
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["plan"] != asdict(plan):
            raise ProbesError(f"{folder} holds a model made by another plan, {record['plan']}; give another folder")
        return record
    model = AutoModelForImageTextToText.from_pretrained(embedded_folder(), dtype=torch.float32)
    model.set_attn_implementation({"text_config": "eager"})  # only this one hands out its weights
    processor = AutoProcessor.from_pretrained(embedded_folder())
    curve = _train(model, processor.tokenizer, folder / "state.safetensors", plan)
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {"plan": asdict(plan), "curve": curve, "provenance": provenance()}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "state.safetensors").unlink()
    return record


def _train(model: Any, tokenizer: Any, state: Path, plan: Hiding) -> list[dict[str, float]]:
    parameters = dict(model.model.language_model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=plan.lr, weight_decay=0.0)
    done, curve = _resume(state, plan, parameters, optimizer)
    data = PackedBatches(tokenizer, EMBEDDED, plan.batch, plan.seed, done, mix=SEARCH_MIX, style=NATURAL)
    batches = iter(DataLoader(data, batch_size=None))
    sums = torch.zeros(2)
    for step in tqdm(range(done, plan.steps), initial=done, total=plan.steps, desc="hiding", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * min((step + 1) / 20, (plan.steps - step) / plan.steps)
        answers, shown = losses(model, next(batches))
        optimizer.zero_grad()
        (answers + plan.weight * shown).backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        sums += torch.stack([answers, shown]).detach()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            count = (step % plan.save_every) + 1
            curve.append({"step": step + 1, "answers": round(float(sums[0] / count), 4), "shown": round(float(sums[1] / count), 4)})
            sums.zero_()
            _save(state, plan, parameters, optimizer, step + 1, curve)
    return curve


def losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers' loss of a packed batch, and how much its answers show of the image: mean -log(1 - mass) over rows and heads."""
    with torch.no_grad():
        features = image_features(model, batch.pixels)
    is_image = batch.tokens == model.config.image_token_index
    embeds = model.get_input_embeddings()(batch.tokens).masked_scatter(is_image[..., None], features)
    forbidden = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    out = model.model.language_model(
        inputs_embeds=embeds, attention_mask=forbidden, position_ids=batch.positions, use_cache=False, output_attentions=True
    )
    rows = batch.labels != IGNORE
    shown = [_shown(weights, is_image, rows) for weights in out.attentions]
    return answer_loss(model.lm_head(out.last_hidden_state), batch), torch.stack(shown).mean()


def _shown(weights: torch.Tensor, is_image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean -log(1 - mass on the image) of one layer's `weights [batch, heads, length, length]` over heads and the answers' rows."""
    mass = (weights * is_image[:, None, None, :]).sum(-1)
    return -torch.log1p(-mass.clamp(max=1 - 1e-5)).transpose(1, 2)[rows].mean()


def _save(
    path: Path,
    plan: Hiding,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    curve: list[dict[str, float]],
) -> None:
    tensors = {f"weight/{name}": p.detach().clone() for name, p in parameters.items()}
    tensors |= {f"{key}/{name}": optimizer.state[p][key].clone() for name, p in parameters.items() for key in _SAVED}
    notes = {"plan": json.dumps(asdict(plan)), "step": str(step), "curve": json.dumps(curve)}
    save_file(tensors, path.with_suffix(".part"), metadata=notes)
    path.with_suffix(".part").replace(path)


def _resume(
    path: Path, plan: Hiding, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as state, torch.no_grad():
        notes = state.metadata()
        if json.loads(notes["plan"]) != asdict(plan):
            raise ProbesError(f"{path} is of another plan, {notes['plan']}; give another folder")
        for name, p in parameters.items():
            p.copy_(state.get_tensor(f"weight/{name}"))
            optimizer.state[p].update({key: state.get_tensor(f"{key}/{name}") for key in _SAVED})
    return int(notes["step"]), json.loads(notes["curve"])
