"""From a box in the picture to the image tokens that show it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.errors import HeadScoresError
from introspect.heads.cases import Box

_EDGE = 1e-6


def tokens_in_box(box: Box, view: Box, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Indices (row by row) of the image tokens that a box touches.

    Args:
        box: in pixels of the picture.
        view: the part of the picture that the model gets to see, in the same pixels.
        grid: rows and columns of its image tokens.

    Returns:
        Ascending indices; none where the box lies outside the view.
    """
    rows, columns = grid
    left, top, right, bottom = view
    across = _touched(box[0], box[2], left, (right - left) / columns, columns)
    down = _touched(box[1], box[3], top, (bottom - top) / rows, rows)
    return (down[:, None] * columns + across).ravel()


def _touched(start: float, end: float, origin: float, size: float, count: int) -> NDArray[np.int64]:
    """Cells of a line of `count` cells that share more than an edge with `start` to `end`."""
    first = int(np.floor((start - origin) / size + _EDGE))
    last = int(np.ceil((end - origin) / size - _EDGE))
    return np.arange(max(0, first), min(count, last), dtype=np.int64)


def view_of(processor: Any, size: tuple[int, int]) -> Box:
    """The part of a picture of `size` (width, height) that a model's image processor hands on.

    Resizing keeps everything; a centre crop after resizing the shorter edge keeps the middle.

    Raises:
        HeadScoresError: the processor pads or tiles, so that tokens cannot be told from boxes.
    """
    images = getattr(processor, "image_processor", processor)
    width, height = size
    if getattr(images, "do_pad", None) and width != height:
        raise HeadScoresError(f"{type(images).__name__} pads pictures, and where a box lands then is not known here")
    if not getattr(images, "do_center_crop", False):
        return (0.0, 0.0, float(width), float(height))
    shortest = _entry(images.size, "shortest_edge")
    scale_x, scale_y = (shortest / min(width, height),) * 2 if shortest else (images.size["width"] / width, images.size["height"] / height)
    wide, high = min(width, images.crop_size["width"] / scale_x), min(height, images.crop_size["height"] / scale_y)
    left, top = (width - wide) / 2, (height - high) / 2
    return (left, top, left + wide, top + high)


def _entry(size: Any, name: str) -> float | None:
    value = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
    return None if value is None else float(value)
