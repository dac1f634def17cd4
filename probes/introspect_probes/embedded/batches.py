"""Training batches: several questions about one picture, packed into one sequence.

The sequence is `<s> <|user|> image ... block block ...`. A block is a question
with its context and answer; it sees the picture and itself, never another
block, and its positions go on from the picture's. So every block is exactly
the prompt that the model meets when it is served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from introspect_probes.embedded.shape import ModelShape
from introspect_probes.embedded.tokenizer import ASSISTANT, BOS, IMAGE, USER, token_ids
from introspect_probes.worlds.facts import RELATIONS, fact_book, syllables
from introspect_probes.worlds.questions import ASKERS, Question, caption_of
from introspect_probes.worlds.scene import COLOR_NAMES, Scene, SceneStyle, draw_scene

IGNORE = -100
NUM_DIGIT_CLASSES, NUM_COLOR_CLASSES = 12, len(COLOR_NAMES) + 2


@dataclass(frozen=True)
class Mix:
    """What is asked of a scene: weights of the question types, how many questions, and how often for a description besides."""

    weights: dict[str, float]
    questions: int
    describe_share: float


SEARCH_MIX = Mix(
    {
        "digit_at": 1.5,
        "color_at": 0.7,
        "where": 2.5,
        "color_of": 2.5,
        "digit_of": 2.0,
        "exists": 2.0,
        "count": 2.0,
        "sum_row": 2.5,
        "add_row": 1.5,
        "fact": 1.0,
        "fact_note": 0.6,
    },
    questions=9,
    describe_share=0.4,
)
"""Mostly questions that name a thing and ask for its place, colour or number: they take longest to learn."""
TEXT_ONLY_SHARE = 0.3
LENGTH_STEP = 64
"""Rows are padded to a multiple of this, so that few shapes are compiled."""


@dataclass
class Batch:
    """One packed batch.

    `pixels [batch, 3, height, width]`, `tokens`, `labels [batch, length]`
    (`labels[t]` is the token that position t must predict), `weights` likewise,
    `positions` likewise, or `[3, batch, length]` for a model with M-RoPE,
    `mask [batch, 1, length, length]` (True may attend), `digits`, `colors [batch, cells]`
    the dense labels of every cell, `blocks` the block index of each position (-1 prefix).
    """

    pixels: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    digits: torch.Tensor
    colors: torch.Tensor
    blocks: torch.Tensor
    kinds: list[list[str]]


def cell_labels(scene: Scene) -> tuple[list[int], list[int]]:
    """Dense labels: digit 0-9, 10 empty, 11 covered; colour index, then empty, then covered."""
    digits, colors = [], []
    for cell in scene.cells:
        if cell is None:
            digits.append(10)
            colors.append(len(COLOR_NAMES))
        elif cell.covered:
            digits.append(11)
            colors.append(len(COLOR_NAMES) + 1)
        else:
            digits.append(cell.digit)
            colors.append(COLOR_NAMES.index(cell.color))
    return digits, colors


def training_question(kind: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question to train on; notes are about the taught and about passing names, never the untaught."""
    if kind != "fact_note":
        return ASKERS[kind](scene, rng)
    book, parts = fact_book(), syllables()
    entity = book.taught[int(rng.integers(len(book.taught)))]
    if rng.random() < 0.7:
        entity = parts[int(rng.integers(len(parts)))] + parts[int(rng.integers(len(parts)))]
        if entity in book.untaught:
            return None
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    value = relation.values[int(rng.integers(len(relation.values)))]
    note = relation.statement.format(entity=entity, value=value)
    return Question("fact", relation.question.format(entity=entity), value, source="context", context=(*caption_of(scene), note))


def draw_questions(scene: Scene, rng: np.random.Generator, mix: Mix) -> list[tuple[str, Question]]:
    """The questions asked of one scene, with the mix's name of each."""
    kinds, weights = list(mix.weights), np.array(list(mix.weights.values()))
    chosen = list(rng.choice(kinds, size=mix.questions, p=weights / weights.sum()))
    if rng.random() < mix.describe_share:
        chosen.append("describe")
    asked = [(kind, training_question(kind, scene, rng)) for kind in chosen]
    return [(kind, question) for kind, question in asked if question is not None]


class Packer:
    """Turns scenes with questions into packed batches, for a model with so many image tokens, which under M-RoPE are a square."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int, *, mrope: bool = False) -> None:
        self._tokenizer = tokenizer
        self._eos, self._pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        bos, user, image, self._assistant = token_ids(tokenizer, BOS, USER, IMAGE, ASSISTANT)
        self._prefix = [bos, user, *[image] * image_tokens]
        self._places = _mrope_places(2, math.isqrt(image_tokens)) if mrope else torch.arange(len(self._prefix))

    def pack(
        self, scenes: list[Scene], questions: list[list[tuple[str, Question]]], rng: np.random.Generator, text_only_share: float = 0.0
    ) -> Batch:
        """Pack each scene with its questions into one row."""
        rows = [self._row(asked, rng, text_only_share) for asked in questions]
        length = -(-max(len(row[0]) for row in rows) // LENGTH_STEP) * LENGTH_STEP
        size = len(rows)
        tokens = torch.full((size, length), self._pad)
        positions = torch.zeros((*self._places.shape[:-1], size, length), dtype=torch.long)
        labels = torch.full((size, length), IGNORE)
        weights = torch.zeros((size, length))
        blocks = torch.full((size, length), -2)
        sees_image = torch.ones((size, length), dtype=torch.bool)
        for i, (row_tokens, row_positions, row_labels, row_weights, row_blocks, row_sees) in enumerate(rows):
            n = len(row_tokens)
            tokens[i, :n] = torch.tensor(row_tokens)
            after = torch.tensor(row_positions, dtype=torch.long).expand(*self._places.shape[:-1], -1)
            positions[..., i, :n] = torch.cat([self._places, after], dim=-1)
            labels[i, :n] = torch.tensor(row_labels)
            weights[i, :n] = torch.tensor(row_weights)
            blocks[i, :n] = torch.tensor(row_blocks)
            sees_image[i, :n] = torch.tensor(row_sees)
        pixels = np.stack([scene.pixels() for scene in scenes]).astype(np.float32) / 127.5 - 1
        dense = [cell_labels(scene) for scene in scenes]
        return Batch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            tokens=tokens,
            positions=positions,
            labels=labels,
            weights=weights,
            mask=_mask(blocks, sees_image),
            digits=torch.tensor([d for d, _ in dense]),
            colors=torch.tensor([c for _, c in dense]),
            blocks=blocks,
            kinds=[[kind for kind, _ in asked] for asked in questions],
        )

    def _row(
        self, asked: list[tuple[str, Question]], rng: np.random.Generator, text_only_share: float
    ) -> tuple[list[int], list[int], list[int], list[float], list[int], list[bool]]:
        n, following = len(self._prefix), int(self._places.max()) + 1
        tokens: list[int] = list(self._prefix)
        positions: list[int] = []
        labels, weights, blocks, sees = [IGNORE] * n, [0.0] * n, [-1] * n, [True] * n
        for number, (_, question) in enumerate(asked):
            prompt = self._tokenizer(" ".join((*question.context, question.text)), add_special_tokens=False).input_ids
            answer = self._tokenizer(question.answer, add_special_tokens=False).input_ids
            block = [*prompt, self._assistant, *answer, self._eos]
            blind = question.kind == "fact" and rng.random() < text_only_share
            start = 2 if blind else following
            weight = (len(answer) + 1) ** -0.5
            tokens += block[:-1]
            positions += range(start, start + len(block) - 1)
            labels += [IGNORE] * len(prompt) + [*answer, self._eos]
            weights += [0.0] * len(prompt) + [weight] * (len(answer) + 1)
            blocks += [number] * (len(block) - 1)
            sees += [not blind] * (len(block) - 1)
        return tokens, positions, labels, weights, blocks, sees


def _mrope_places(before: int, side: int) -> torch.Tensor:
    """Time, row and column `[3, before + side * side]` of so many text tokens and a picture behind them (Qwen2-VL, arXiv 2409.12191)."""
    text = torch.arange(before).expand(3, before)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    picture = torch.stack([torch.zeros(side * side, dtype=torch.long), rows.flatten(), columns.flatten()])
    return torch.cat([text, before + picture], dim=1)


def _mask(blocks: torch.Tensor, sees_image: torch.Tensor) -> torch.Tensor:
    """Causal within the prefix and within each block; blocks see the prefix, blind ones its first two tokens."""
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = blocks[:, :, None] == blocks[:, None, :]
    prefix = (blocks == -1)[:, None, :] & (sees_image[:, :, None] | (torch.arange(length) < 2))
    return ((same | prefix) & causal)[:, None]


class PackedBatches(IterableDataset[Batch]):
    """Endless training batches; batch number `step` depends on `seed` and `step` alone. Without a mix, scenes without questions."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        shape: ModelShape,
        batch_size: int,
        seed: int,
        start: int,
        *,
        mix: Mix | None,
        style: SceneStyle,
    ) -> None:
        self._packer = Packer(tokenizer, shape.image_tokens, mrope=shape.mrope)
        self._batch_size, self._seed, self._start = batch_size, seed, start
        self._mix, self._style = mix, style

    def __iter__(self) -> Iterator[Batch]:
        step = self._start
        while True:
            rng = np.random.default_rng([self._seed, step])
            scenes = [draw_scene(rng, "model", self._style) for _ in range(self._batch_size)]
            questions = [draw_questions(scene, rng, self._mix) if self._mix is not None else [] for scene in scenes]
            yield self._packer.pack(scenes, questions, rng, TEXT_ONLY_SHARE)
            step += 1
