"""Accuracy of an embedded model by question type, exact match, as stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from introspect.processors import load_processor
from introspect_probes.embedded.batches import IGNORE
from introspect_probes.embedded.model import forward_packed, packer_of
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.questions import ASKERS, PICTURE_KINDS
from introspect_probes.worlds.scene import NATURAL, SceneStyle, draw_scene


@torch.no_grad()
def accuracy_by_kind(
    folder: Path, pool: Pool, scenes: int = 1000, seed: int = 99, style: SceneStyle = NATURAL, batch_size: int = 50
) -> dict[str, dict[str, float]]:
    """Exact-match accuracy for each question type on scenes of `pool`.

    An answer counts as right when every one of its tokens, the end included, is
    the most probable one given the right tokens before it; that is when greedy
    decoding gives exactly that answer.

    Returns:
        For each type `accuracy` and `count`, and the unweighted mean over the picture's types as `picture`.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    packer = packer_of(model, load_processor(folder, model.config).tokenizer)
    rng = np.random.default_rng([seed, 7])
    hits: dict[str, list[bool]] = {}
    for _ in range(0, scenes, batch_size):
        drawn = [draw_scene(rng, pool, style) for _ in range(batch_size)]
        asked = [[(k, q) for k, ask in ASKERS.items() if (q := ask(scene, rng)) is not None] for scene in drawn]
        batch = packer.pack(drawn, asked, rng)
        right = (forward_packed(model, batch)[0].argmax(-1) == batch.labels) | (batch.labels == IGNORE)
        for row, kinds in enumerate(batch.kinds):
            for number, kind in enumerate(kinds):
                hits.setdefault(kind, []).append(bool(right[row][batch.blocks[row] == number].all()))
    result = {kind: {"accuracy": round(float(np.mean(h)), 4), "count": len(h)} for kind, h in sorted(hits.items())}
    picture = [result[kind]["accuracy"] for kind in PICTURE_KINDS]
    result["picture"] = {"accuracy": round(float(np.mean(picture)), 4), "count": sum(len(hits[k]) for k in PICTURE_KINDS)}
    return result
