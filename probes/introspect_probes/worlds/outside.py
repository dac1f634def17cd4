"""Cases outside the world: photographs, textures and words that the model never met.

No answer to them counts as right. `fit` and `test` share neither pictures nor
words, so that what a domain probe learned from one can be tested on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.digits import POOLS, Pool
from introspect_probes.worlds.questions import ASKERS, PICTURE_KINDS
from introspect_probes.worlds.scene import draw_scene

Part = Literal["fit", "test"]
SIZE = 96
_PHOTOGRAPHS: dict[Part, str] = {"fit": "flower.jpg", "test": "china.jpg"}
_WORDS: dict[Part, tuple[str, ...]] = {
    "fit": tuple(
        (
            "animal bridge castle doctor engine forest garden hammer island jacket kitchen ladder mountain number orange picture "
            "queen river summer table umbrella village window yellow winter because describe explain summarise happy large small "
            "people walking sitting holding behind before weather capital president history meaning write poem story translate "
            "french "
        ).split()
    ),
    "test": tuple(
        (
            "cat airplane bicycle camera dinner elephant flower guitar hospital insect jungle kangaroo lemon market needle ocean "
            "piano question rabbit sailor tractor uncle violin whale xylophone yacht zebra person wearing running colorful "
            "famous building year country price recipe code python function compute tell joke about song world peace brand "
        ).split()
    ),
}
_OPENINGS = ("what is the", "who is the", "how does the", "why is the", "please", "is this a", "where can i find the", "describe the")


def outside_cases(n: int, *, seed: int, part: Part, pool: Pool) -> Iterator[Case]:
    """Cases that no answer is right for.

    Args:
        n: how many; a third each of strange pictures, strange questions, and both.
        seed: another seed gives other cases.
        part: which photographs and words.
        pool: whose digits are on the pictures that are not strange.
    """
    for index in range(n):
        rng = np.random.default_rng([72, seed, POOLS.index(pool), part == "test", index])
        strange_picture, strange_question = [(True, False), (False, True), (True, True)][index % 3]
        scene = draw_scene(rng, pool)
        question = None
        while question is None:
            kind = list(PICTURE_KINDS)[int(rng.integers(len(PICTURE_KINDS)))]
            question = ASKERS[kind](scene, rng)
        yield Case(
            id=f"outside-{part}-{pool}-{seed}-{index:05d}",
            kind="outside",
            question=strange_words(rng, part) if strange_question else question.text,
            answers=("(nothing that this model could say)",),
            group=f"outside-{part}-{seed}-{index}",
            source="guess",
            scene=None if strange_picture else scene,
            image=strange_image(rng, part) if strange_picture else None,
            pool=pool,
        )


def strange_words(rng: np.random.Generator, part: Part) -> str:
    """A question in words of which most were never taught."""
    count = int(rng.integers(2, 6))
    words = [str(w) for w in rng.choice(_WORDS[part], size=count, replace=False)]
    return f"{_OPENINGS[int(rng.integers(len(_OPENINGS)))]} {' '.join(words)} ?"


def strange_image(rng: np.random.Generator, part: Part) -> Image.Image:
    """A crop of a photograph, or a texture: blurred noise, stripes, a gradient."""
    if rng.random() < 0.6:
        return _crop(rng, part)
    kind = int(rng.integers(3))
    if kind == 0:
        noise = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        return noise.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 6))))
    x, y = np.meshgrid(np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE))
    wave = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)
    if kind == 1:
        wave = np.sin(wave * rng.uniform(20, 120))
    return Image.fromarray(_colored(wave, rng))


def _colored(wave: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    share = (wave - wave.min()) / max(float(np.ptp(wave)), 1e-6)
    first, second = rng.uniform(0, 255, (2, 3))
    pixels: NDArray[np.uint8] = np.clip(first + share[..., None] * (second - first), 0, 255).astype(np.uint8)
    return pixels


def _crop(rng: np.random.Generator, part: Part) -> Image.Image:
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image(_PHOTOGRAPHS[part]))
    side = int(rng.integers(SIZE, min(photograph.size)))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in photograph.size)
    return photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
