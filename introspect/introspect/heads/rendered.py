"""Pictures of words with a known box for each, for models that read: what SparseMM takes Synthdog for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from introspect.heads.cases import TRANSCRIBE, Evidence, HeadCase

SIDE = 448
MARGIN = 12
SIZES = (18, 24, 32, 44)
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "~/.fonts", "~/.local/share/fonts", "C:/Windows/Fonts")
_LATIN_FONTS = ("DejaVu", "Liberation", "Noto", "FreeSans", "FreeSerif", "Arial", "Times", "Georgia", "Verdana", "Ubuntu", "Roboto")
"""Families known to hold the letters of the words below; a symbol font would draw boxes."""

WORDS = (
    "river window green market seven letter summer bridge quiet stone paper morning garden silver north engine "
    "Straße Fenster Wasser Brücke Morgen grün Zeitung acht "
    "fenêtre maison lumière garçon été forêt rouge neuf "
    "ventana árbol niño puerta verde camino diez ciudad "
    "finestra libro città giallo strada mattina vento cento"
).split()


def rendered_cases(n: int, seed: int = 0) -> Iterator[HeadCase]:
    """`n` pictures of one to six lines of words and numbers, in Pillow's own font and whatever Latin TrueType fonts are found.

    The same seed gives the same pictures on a machine with the same fonts.
    """
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        yield _draw(f"rendered-{seed}-{index}", rng)


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """Paths of Latin TrueType fonts of this machine, in order of name; Pillow's own font comes on top."""
    found = {path for folder in _FONT_FOLDERS for path in Path(folder).expanduser().rglob("*.ttf") if path.stem.startswith(_LATIN_FONTS)}
    regular = [p for p in found if not any(part in p.stem for part in ("Emoji", "Math", "Symbol", "CJK"))]
    return tuple(sorted(map(str, regular), key=lambda name: (Path(name).name, name)))[:24]


def _font(rng: np.random.Generator) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    choices = (None, *fonts())
    chosen, size = choices[int(rng.integers(len(choices)))], int(rng.choice(SIZES))
    return ImageFont.load_default(size) if chosen is None else ImageFont.truetype(chosen, size)


def _word(rng: np.random.Generator) -> str:
    return str(int(rng.integers(10, 9999))) if rng.random() < 0.3 else WORDS[int(rng.integers(len(WORDS)))]


def _draw(name: str, rng: np.random.Generator) -> HeadCase:
    background, ink = (int(rng.integers(200, 256)), int(rng.integers(0, 90)))
    picture = Image.new("RGB", (SIDE, SIDE), (background,) * 3)
    canvas, font = ImageDraw.Draw(picture), _font(rng)
    _, top, _, bottom = canvas.textbbox((0, 0), "Ég", font=font)
    step = int((bottom - top) * 1.5) + 2
    y, lines, text = MARGIN + int(rng.integers(0, 40)), int(rng.integers(1, 7)), ""
    evidence: list[Evidence] = []
    for _ in range(lines):
        x = float(MARGIN + int(rng.integers(0, 60)))
        while True:
            word = _word(rng)
            box = canvas.textbbox((x, y), word, font=font)
            if box[2] > SIDE - MARGIN or box[3] > SIDE - MARGIN:
                break
            canvas.text((x, y), word, fill=(ink,) * 3, font=font)
            text += " " if text else ""
            evidence.append(Evidence(len(text), len(text) + len(word), ((box[0], box[1], box[2], box[3]),)))
            text += word
            x = box[2] + canvas.textlength(" ", font=font)
        y += step
    return HeadCase(name, picture, TRANSCRIBE, text, tuple(evidence))
