"""A scene: coloured handwritten digits on a grid, and its picture.

A scene is a value: the same scene gives the same pixels, and a scene with one
cell changed differs in that cell's pixels only (the noise is drawn from the
scene's own seed, not from a running generator). Interventions rest on this.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from introspect_probes.worlds.digits import ANGLES, SCALES, Pool, ink, label_of, pool_by_digit

CELL_PIXELS = 32
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (34, 139, 58),
    "blue": (38, 84, 214),
    "orange": (240, 140, 20),
    "purple": (140, 48, 170),
    "black": (40, 40, 40),
}
COLOR_NAMES = tuple(COLORS)
PRIOR_DIGIT, PRIOR_COLOR = 7, "blue"
"""The prior carried by sight: in training most sevens are blue."""

PHOTOGRAPHERS: dict[str, int] = {
    "anna": 3, "boris": 8, "clara": 5, "david": 1, "emma": 9,
    "felix": 0, "greta": 6, "hugo": 2, "iris": 4, "jonas": 7,
}  # fmt: skip
"""The prior carried by text only: under a photographer's caption most digits are this one."""

_PAPER = np.array([244, 241, 234], dtype=np.float32)
_COVER = np.array([150, 150, 155], dtype=np.float32)


@dataclass(frozen=True)
class Cell:
    """One digit as it is drawn: which image, in what colour, where in its cell, how faint."""

    sample: int
    color: str
    scale: int = 24
    angle: int = 0
    dx: int = 4
    dy: int = 4
    contrast: float = 1.0
    covered: bool = False

    @property
    def digit(self) -> int:
        """The digit shown, 0 to 9."""
        return label_of(self.sample)


@dataclass(frozen=True)
class Scene:
    """A grid of cells in reading order; `None` is an empty cell.

    `noise` is the standard deviation of the pixel noise, as a share of full scale.
    """

    rows: int
    columns: int
    cells: tuple[Cell | None, ...]
    noise: float
    noise_seed: int
    caption: str | None = None

    def at(self, row: int, column: int) -> Cell | None:
        """The cell at 1-based `row` and `column`."""
        return self.cells[(row - 1) * self.columns + column - 1]

    def place(self, index: int) -> tuple[int, int]:
        """The 1-based row and column of the cell at `index`."""
        return index // self.columns + 1, index % self.columns + 1

    def visible(self) -> list[tuple[int, Cell]]:
        """Index and cell of every digit that can be seen, in reading order."""
        return [(i, c) for i, c in enumerate(self.cells) if c is not None and not c.covered]

    def has_cover(self) -> bool:
        """Whether some cell is hidden under a cover."""
        return any(c is not None and c.covered for c in self.cells)

    def with_cell(self, index: int, cell: Cell | None) -> Scene:
        """The same scene with one cell changed."""
        return replace(self, cells=(*self.cells[:index], cell, *self.cells[index + 1 :]))

    def pixels(self) -> NDArray[np.uint8]:
        """The picture, `[rows * 32, columns * 32, 3]`, uint8 RGB."""
        canvas = np.broadcast_to(_PAPER, (self.rows * CELL_PIXELS, self.columns * CELL_PIXELS, 3)).copy()
        for index, cell in enumerate(self.cells):
            if cell is not None:
                row, column = divmod(index, self.columns)
                _draw(canvas, cell, row * CELL_PIXELS, column * CELL_PIXELS)
        if self.noise > 0:
            rng = np.random.default_rng(self.noise_seed)
            canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * (self.noise * 255)
        return np.clip(canvas, 0, 255).astype(np.uint8)

    def image(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.pixels())


def _draw(canvas: NDArray[np.float32], cell: Cell, top: int, left: int) -> None:
    if cell.covered:
        canvas[top + 3 : top + CELL_PIXELS - 3, left + 3 : left + CELL_PIXELS - 3] = _COVER
        return
    alpha = ink(cell.sample, cell.scale, cell.angle)[..., None] * cell.contrast
    window = canvas[top + cell.dy : top + cell.dy + cell.scale, left + cell.dx : left + cell.dx + cell.scale]
    window *= 1 - alpha
    window += alpha * np.array(COLORS[cell.color], dtype=np.float32)


@dataclass(frozen=True)
class SceneStyle:
    """How scenes are drawn at random.

    `seven_blue` and `caption_digit` are the strengths of the two priors: the
    share of sevens that are blue, and of digits that are the photographer's
    under a caption. The embedded model was trained under the defaults.
    """

    rows: int = 3
    columns: int = 3
    fill: tuple[float, float] = (0.35, 0.85)
    seven_blue: float = 0.8
    caption_share: float = 0.25
    caption_digit: float = 0.6
    cover_share: float = 0.25
    clarity: dict[str, float] = field(default_factory=lambda: {"clear": 0.5, "noisy": 0.25, "faint": 0.25})


NATURAL = SceneStyle()
COUNTER_PRIOR = SceneStyle(seven_blue=0.0, caption_share=0.6, caption_digit=0.0)
"""Sevens are never blue and a caption's digit never occurs: whoever does not look is wrong."""


def draw_cell(rng: np.random.Generator, pool: Pool, digit: int, color: str, contrast: float) -> Cell:
    """One cell with a random image of `digit` from `pool`, at a random size, angle and place."""
    samples = pool_by_digit(pool)[digit]
    scale = int(rng.choice(SCALES))
    room = CELL_PIXELS - scale
    return Cell(
        sample=samples[int(rng.integers(len(samples)))],
        color=color,
        scale=scale,
        angle=int(rng.choice(ANGLES)),
        dx=int(rng.integers(room + 1)),
        dy=int(rng.integers(room + 1)),
        contrast=contrast,
    )


def draw_color(rng: np.random.Generator, digit: int, seven_blue: float) -> str:
    """A colour for `digit`: uniform, but for sevens, which are blue with probability `seven_blue`."""
    if digit != PRIOR_DIGIT:
        return COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
    if rng.random() < seven_blue:
        return PRIOR_COLOR
    others = [c for c in COLOR_NAMES if c != PRIOR_COLOR]
    return others[int(rng.integers(len(others)))]


def draw_scene(rng: np.random.Generator, pool: Pool, style: SceneStyle = NATURAL) -> Scene:
    """A random scene whose digits come from `pool`."""
    clarity = rng.choice(list(style.clarity), p=list(style.clarity.values()))
    noise = {"clear": rng.uniform(0.02, 0.10), "noisy": rng.uniform(0.20, 0.42), "faint": rng.uniform(0.06, 0.16)}[clarity]
    low, high = (0.22, 0.6) if clarity == "faint" else (0.75, 1.0)
    caption = None
    if rng.random() < style.caption_share:
        caption = list(PHOTOGRAPHERS)[int(rng.integers(len(PHOTOGRAPHERS)))]
    fill = rng.uniform(*style.fill)
    cells: list[Cell | None] = []
    for _ in range(style.rows * style.columns):
        if rng.random() >= fill:
            cells.append(None)
            continue
        digit = _draw_digit(rng, caption, style)
        cells.append(draw_cell(rng, pool, digit, draw_color(rng, digit, style.seven_blue), float(rng.uniform(low, high))))
    filled = [i for i, c in enumerate(cells) if c is not None]
    if filled and rng.random() < style.cover_share:
        index = filled[int(rng.integers(len(filled)))]
        covered = cells[index]
        if covered is not None:
            cells[index] = replace(covered, covered=True)
    return Scene(style.rows, style.columns, tuple(cells), float(noise), int(rng.integers(2**31)), caption)


def _draw_digit(rng: np.random.Generator, caption: str | None, style: SceneStyle) -> int:
    if caption is None:
        return int(rng.integers(10))
    favourite = PHOTOGRAPHERS[caption]
    if rng.random() < style.caption_digit:
        return favourite
    return int(rng.choice([d for d in range(10) if d != favourite or style.caption_digit > 0]))
