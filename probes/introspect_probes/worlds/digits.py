"""Handwritten digits, split once into four pools of writers.

The images are scikit-learn's `load_digits` (1,797 digits of 8 x 8 pixels, UCI
ML repository). Neighbouring rows come from the same writer, so the pools are
contiguous blocks: no writer's hand is met in two of them, save at a border.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pool = Literal["model", "probe", "calibration", "test"]
POOLS: tuple[Pool, ...] = get_args(Pool)

_BLOCKS: dict[Pool, tuple[int, int]] = {
    "model": (0, 960),
    "probe": (960, 1280),
    "calibration": (1280, 1500),
    "test": (1500, 1797),
}
SCALES = (20, 22, 24, 26, 28)
ANGLES = (-12, -6, 0, 6, 12)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # only who draws scenes needs scikit-learn, not who serves

    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


@lru_cache(maxsize=len(POOLS))
def pool_by_digit(pool: Pool) -> tuple[tuple[int, ...], ...]:
    """The pool's image indices, one tuple for each digit 0 to 9."""
    start, stop = _BLOCKS[pool]
    labels = _digits()[1][start:stop]
    return tuple(tuple(int(i) + start for i in np.flatnonzero(labels == digit)) for digit in range(10))


def pool_of(index: int) -> Pool:
    """The pool that owns the image at `index`.

    Raises:
        IndexError: there is no such image.
    """
    for pool, (start, stop) in _BLOCKS.items():
        if start <= index < stop:
            return pool
    raise IndexError(f"digit image index must be in 0..1796, got {index}")


def label_of(index: int) -> int:
    """The digit 0 to 9 that the image at `index` shows."""
    return int(_digits()[1][index])


@lru_cache(maxsize=16_384)
def ink(index: int, scale: int, angle: int) -> NDArray[np.float32]:
    """One digit enlarged to `[scale, scale]` and turned by `angle` degrees; 0 is paper, 1 is ink."""
    small = Image.fromarray((_digits()[0][index] * 255).astype(np.uint8))
    large = small.resize((scale, scale), Image.Resampling.BICUBIC)
    if angle:
        large = large.rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float32) / 255.0
