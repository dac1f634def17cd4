"""Shapes of models of the world of digits: the embedded one, and small ones of which a study can afford several."""

from __future__ import annotations

from dataclasses import dataclass, replace

IMAGE_SIZE = 96


@dataclass(frozen=True)
class ModelShape:
    """A small LLaVA, or a small Qwen2-VL.

    Attributes:
        patch: side in pixels of what an image token shows (four patches of the tower in Qwen2-VL); a cell of the picture is 32 wide.
        vision_width, vision_inner, vision_layers, vision_heads: of the vision tower.
        width, inner, layers, heads, kv_heads, head_dim: of the language model.
        mrope: whether it is a Qwen2-VL, whose rotary positions have three axes.
    """

    patch: int
    vision_width: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mrope: bool = False

    @property
    def side(self) -> int:
        """Patches along a side of the picture."""
        return IMAGE_SIZE // self.patch

    @property
    def image_tokens(self) -> int:
        """Image tokens of a picture."""
        return self.side**2


_STUDY = ModelShape(
    patch=16, vision_width=96, vision_inner=288, vision_layers=2, vision_heads=4,
    width=128, inner=320, layers=4, heads=8, kv_heads=4, head_dim=32,
)  # fmt: skip
SHAPES: dict[str, ModelShape] = {
    "embedded": ModelShape(
        patch=8, vision_width=128, vision_inner=384, vision_layers=4, vision_heads=4,
        width=192, inner=448, layers=5, heads=8, kv_heads=4, head_dim=32,
    ),
    "study": _STUDY,
    "study-multi-head": replace(_STUDY, kv_heads=8),
    "study-small": replace(_STUDY, width=96, inner=240, layers=3, heads=4, kv_heads=2),
    "study-deep": replace(_STUDY, layers=7),
    "study-qwen2-vl": replace(_STUDY, heads=4, kv_heads=2, mrope=True),
}  # fmt: skip
"""By name. `study` has the shape of the pilot: 36 image tokens, four to a cell, 8 query and 4 KV heads, about a
million parameters; `study-multi-head` has a KV head for every query head, `study-small` and `study-deep` fewer and
more layers in the language model. `study-qwen2-vl` has half the heads: there they share the model's width."""
EMBEDDED = SHAPES["embedded"]
