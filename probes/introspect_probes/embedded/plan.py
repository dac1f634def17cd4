"""Plans: every number of a training run, for each size of model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from introspect_probes.embedded.batches import SEARCH_MIX, Mix
from introspect_probes.embedded.shape import SHAPES, ModelShape
from introspect_probes.worlds.scene import NATURAL, SceneStyle

EASY = SceneStyle(clarity={"clear": 1.0}, fill=(0.7, 1.0))
"""The first steps: well-filled, clear scenes."""
READING_MIX = Mix(
    {"digit_at": 4.0, "color_at": 2.0, "digit_of": 0.4, "color_of": 0.4, "count": 0.5, "fact": 0.7, "fact_note": 0.3},
    questions=5,
    describe_share=0.0,
)
"""Mostly questions about a cell that is named, which is what the studies ask; few and short, so that rows hold 128 tokens."""


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `stop` - 1 (a part of them, where the style changes midway): what they see and at what rate."""

    number: int
    start: int
    stop: int
    steps: int
    batch: int
    lr: float
    mix: Mix | None
    style: SceneStyle


@dataclass(frozen=True)
class Plan:
    """Every number of a training run.

    `joint_checkpoints`: whether the log-spaced checkpoints count from the first step of the joint stage, before which
    the language model has learned nothing, or from the first step of all. `eager`: the language model's attention in
    training; on short rows with small heads it takes half as long as the flash kernel on a CPU.
    """

    size: str = "embedded"
    seed: int = 0
    easy_steps: int = 400
    dense_steps: int = 1400
    joint_steps: int = 2700
    dense_batch: int = 64
    joint_batch: int = 24
    dense_lr: float = 2.5e-3
    joint_lr: float = 1.0e-3
    min_lr_share: float = 0.03
    warmup: int = 100
    weight_decay: float = 0.03
    dense_weight: float = 0.25
    checkpoints: int = 12
    joint_checkpoints: bool = False
    eager: bool = False
    mix: Mix = SEARCH_MIX

    @property
    def shape(self) -> ModelShape:
        """The model's."""
        return SHAPES[self.size]

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.dense_steps + self.joint_steps

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        if step < self.dense_steps:
            stop = self.easy_steps if step < self.easy_steps else self.dense_steps
            style = EASY if step < self.easy_steps else NATURAL
            return Stage(1, 0, stop, self.dense_steps, self.dense_batch, self.dense_lr, None, style)
        return Stage(2, self.dense_steps, self.steps, self.joint_steps, self.joint_batch, self.joint_lr, self.mix, NATURAL)

    def marks(self) -> set[int]:
        """Steps behind which a checkpoint is kept, the last one included; that of the untrained weights, 0, is kept too."""
        first = self.dense_steps if self.joint_checkpoints else 0
        return {0, *(first + step for step in log_spaced(self.steps - first, self.checkpoints))}


def log_spaced(steps: int, count: int) -> set[int]:
    """About `count` steps, evenly spaced in the logarithm, the last one included."""
    return {round(steps ** ((i + 1) / count)) for i in range(count)}


_STUDY = Plan(
    size="study",
    easy_steps=300,
    dense_steps=800,
    joint_steps=2500,
    dense_batch=48,
    joint_lr=2.0e-3,
    joint_checkpoints=True,
    eager=True,
    mix=READING_MIX,
)
PLANS: dict[str, Plan] = {
    "embedded": Plan(),
    **{size: replace(_STUDY, size=size) for size in ("study", "study-multi-head", "study-small", "study-deep", "study-qwen2-vl")},
}
"""By size."""
