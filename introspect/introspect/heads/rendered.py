"""Pictures of words with a known box for each, for models that read: what SparseMM takes Synthdog for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from introspect.heads.cases import TRANSCRIBE, Evidence, HeadCase
from introspect.heads.scripts import Typeface, typefaces

SIDE = 448
MARGIN = 12
SIZES = (18, 24, 32, 44)


def rendered_cases(n: int, seed: int = 0, faces: Sequence[Typeface] = ()) -> Iterator[HeadCase]:
    """`n` pictures of one to six lines of words and numbers, each picture in one script, font and size.

    The same seed gives the same pictures with the same fonts.

    Args:
        n: how many.
        seed: which.
        faces: from `typefaces`; Latin letters in the fonts at hand without. About half of the pictures are in Latin letters.
    """
    chosen = list(faces) or typefaces(scripts=["latin"])
    scripts = sorted({face.script for face in chosen} - {"latin"})
    if any(face.script == "latin" for face in chosen):
        scripts += ["latin"] * max(1, len(scripts))
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        script = scripts[int(rng.integers(len(scripts)))]
        mine = [face for face in chosen if face.script == script]
        yield _draw(f"rendered-{seed}-{index}", rng, mine[int(rng.integers(len(mine)))])


def _word(rng: np.random.Generator, words: Sequence[str]) -> str:
    return str(int(rng.integers(10, 9999))) if rng.random() < 0.3 else words[int(rng.integers(len(words)))]


def _draw(name: str, rng: np.random.Generator, face: Typeface) -> HeadCase:
    background, ink = (int(rng.integers(200, 256)), int(rng.integers(0, 90)))
    picture = Image.new("RGB", (SIDE, SIDE), (background,) * 3)
    canvas, font = ImageDraw.Draw(picture), face.at(int(rng.choice(SIZES)))
    _, top, _, bottom = canvas.textbbox((0, 0), "9" + "".join(face.words), font=font)
    step = int((bottom - top) * 1.3) + 2
    y, lines, text = MARGIN + int(rng.integers(0, 40)), int(rng.integers(1, 7)), ""
    evidence: list[Evidence] = []
    for _ in range(lines):
        x = float(MARGIN + int(rng.integers(0, 60)))
        while True:
            word = _word(rng, face.words)
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
