"""Image tokens and the parts of a picture that they show, for pictures that a model sees whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.heads.cases import Box

Boxes = NDArray[np.float64]
"""`[tokens, 4]`: left, top, right and bottom of what each image token shows, in pixels of the picture; NaN where it shows no part of it."""

Axis = NDArray[np.float64]
"""`[cells, 2]`: where each of a line of cells begins and ends."""

_EDGE = 1e-6


def tokens_in_box(box: Box, tokens: Boxes) -> NDArray[np.int64]:
    """Ascending indices of the image tokens that share more than an edge with a box."""
    across = np.minimum(tokens[:, 2], box[2]) - np.maximum(tokens[:, 0], box[0])
    down = np.minimum(tokens[:, 3], box[3]) - np.maximum(tokens[:, 1], box[1])
    return np.flatnonzero((across > _EDGE) & (down > _EDGE))


def grid(down: Axis, across: Axis) -> Boxes:
    """The tokens of a grid row by row, from where its rows and its columns lie."""
    rows, columns = np.repeat(down, len(across), 0), np.tile(across, (len(down), 1))
    return np.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], 1)


def axis(tiles: int, tokens: int, tile: float, token: float) -> Axis:
    """`tiles` of `tile` pixels side by side, each with `tokens` of `token` pixels from its first pixel on."""
    starts = (np.arange(tiles)[:, None] * tile + np.arange(tokens) * token).ravel()
    return np.stack([starts, starts + token], 1)


def even(view: Box, rows: int, columns: int) -> Boxes:
    """A view cut into a grid of equal cells."""
    left, top, right, bottom = view
    down, across = axis(1, rows, 0, (bottom - top) / rows), axis(1, columns, 0, (right - left) / columns)
    return grid(down + top, across + left)


def view_of(images: Any, size: tuple[int, int]) -> Box:
    """The rectangle that an image processor hands on of a picture of `size` (width, height), in its pixels; may reach past its edges.

    LLaVA's may pad a picture to a square; resizing keeps everything; a centre crop keeps the middle.
    """
    width, height = size
    left = top = 0
    if getattr(images, "do_pad", None) and hasattr(images, "pad_to_square"):
        longest = max(size)
        left, top = -((longest - width) // 2), -((longest - height) // 2)
        width = height = longest
    if not getattr(images, "do_center_crop", False):
        return (left, top, left + width, top + height)
    wide, high = _resized(images, width, height)
    crop_wide, crop_high = int(images.crop_size["width"]), int(images.crop_size["height"])
    x, y = (wide - crop_wide) // 2, (high - crop_high) // 2
    scale_x, scale_y = width / wide, height / high
    return (left + x * scale_x, top + y * scale_y, left + (x + crop_wide) * scale_x, top + (y + crop_high) * scale_y)


def _resized(images: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height before the crop."""
    if not getattr(images, "do_resize", True):
        return width, height
    size = dict(images.size) if isinstance(images.size, dict) else vars(images.size)
    shortest = size.get("shortest_edge")
    if shortest is None:
        return int(size["width"]), int(size["height"])
    longest = int(shortest * max(width, height) / min(width, height))
    return (longest, int(shortest)) if width > height else (int(shortest), longest)
