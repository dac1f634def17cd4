"""The sample pictures kept in the repository, and the page that tells what is true of them.

`python -m introspect_probes.worlds.samples FOLDER` writes them again: four
scenes of the test pool's digits, which neither the model nor its probes were
fitted on, and a photograph of something else altogether.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from introspect_probes.errors import CaseError
from introspect_probes.worlds.questions import caption_of
from introspect_probes.worlds.scene import Cell, Scene, draw_cell
from introspect_probes.worlds.truth import true_answer

_CONTEXT_MARK = " | "


@dataclass(frozen=True)
class Sample:
    """A picture with questions to try; `questions` may put a note before a bar: `note | question`."""

    name: str
    title: str
    scene: Scene
    questions: tuple[str, ...]


def _scene(layout: str, seed: int, *, noise: float, contrast: float = 1.0, caption: str | None = None) -> Scene:
    """A scene from words: rows on lines, `red 3` a digit, `-` empty, a `*` behind a covered one."""
    rng = np.random.default_rng(seed)
    rows = [[word.strip() for word in line.split(",")] for line in layout.split("/")]
    cells = [_cell(word, rng, contrast) for row in rows for word in row]
    return Scene(len(rows), len(rows[0]), tuple(cells), noise, seed, caption)


def _cell(word: str, rng: np.random.Generator, contrast: float) -> Cell | None:
    if word == "-":
        return None
    color, digit = word.rstrip("*").split()
    return replace(draw_cell(rng, "test", int(digit), color, contrast), covered=word.endswith("*"))


def samples() -> tuple[Sample, ...]:
    """The four scenes; the same ones every time."""
    return (
        Sample(
            "scene-1.png",
            "A clear scene",
            _scene("red 3, blue 7, - / green 5, -, orange 2 / black 9, purple 0, red 4", 10, noise=0.03),
            (
                "what digit is at row 2 column 3 ?",
                "what color is at row 2 column 3 ?",
                "what digit is at row 1 column 3 ?",
                "where is the green 5 ?",
                "what color is the 9 ?",
                "what digit is purple ?",
                "what digit is green ?",
                "is there a 7 ?",
                "is there a red 5 ?",
                "how many red ?",
                "how many digits ?",
                "what is the sum of row 3 ?",
                "add up row 3",
                "describe everything",
            ),
        ),
        Sample(
            "scene-2.png",
            "Sevens that are not blue, as most were in training",
            _scene("green 7, -, blue 1 / -, red 7, black 6 / blue 4, -, orange 2", 12, noise=0.04),
            (
                "what color is at row 1 column 1 ?",
                "what color is at row 2 column 2 ?",
                "what digit is red ?",
                "where is the red 7 ?",
                "is there a blue 7 ?",
                "is there a green 7 ?",
                "how many blue ?",
                "describe everything",
            ),
        ),
        Sample(
            "scene-3.png",
            "Faint ink and much noise",
            _scene("-, purple 6, green 2 / red 8, -, blue 5 / -, black 3, red 1", 14, noise=0.12, contrast=0.5),
            (
                "what digit is at row 2 column 3 ?",
                "what digit is at row 1 column 1 ?",
                "what color is the 6 ?",
                "is there a 8 ?",
                "how many red ?",
                "what is the sum of row 1 ?",
                "describe everything",
            ),
        ),
        Sample(
            "scene-4.png",
            "A caption that suggests a digit, and a covered cell",
            _scene("orange 8, -, green 6* / blue 0, red 1, - / -, purple 4, blue 5", 17, noise=0.03, caption="anna"),
            (
                "what digit is at row 1 column 3 ?",
                "the digit at row 1 column 3 is 6 . | what digit is at row 1 column 3 ?",
                "what digit is at row 2 column 2 ?",
                "is there a 4 ?",
                "what is the sum of row 3 ?",
                "describe everything",
            ),
        ),
    )


def truths(sample: Sample) -> list[tuple[tuple[str, ...], str, str]]:
    """For each question of a sample the passages of its prompt, the question, and its true answer.

    Raises:
        CaseError: a question has no unique answer in the scene.
    """
    rows = []
    for line in sample.questions:
        *notes, question = line.split(_CONTEXT_MARK)
        context = (*caption_of(sample.scene), *notes)
        truth = true_answer(question, sample.scene, context)
        if truth is None:
            raise CaseError(f"{sample.name}: {question!r} has no unique answer in the scene")
        rows.append((context, question, truth.answer))
    return rows


def page() -> str:
    """The text of `README.md` beside the pictures."""
    parts = [
        "# Sample pictures\n",
        "Written by `python -m introspect_probes.worlds.samples samples`; the answers are computed from the scenes.",
        "The digits are real handwriting from the test pool of scikit-learn's `load_digits`",
        "(E. Alpaydin and C. Kaynak, [Optical Recognition of Handwritten Digits](https://archive.ics.uci.edu/dataset/80),",
        "UCI Machine Learning Repository).\n",
    ]
    for sample in samples():
        parts += [f"## {sample.title}\n", f'<img src="{sample.name}" width="288" alt="{sample.name}">\n']
        parts += ["| passages before it | question | true answer |", "|---|---|---|"]
        parts += [f"| {' '.join(context)} | `{question}` | {answer} |" for context, question, answer in truths(sample)]
        parts.append("")
    return "\n".join([*parts, _PHOTO])


_PHOTO = """## A photograph

<img src="photo-flower.jpg" width="288" alt="photo-flower.jpg">

Outside everything that the embedded model knows, whatever it is asked. It is scikit-learn's sample image `flower.jpg`,
[photo 6056698931](https://www.flickr.com/photos/vultilion/6056698931/) on Flickr (scikit-learn attributes it to danielbuechele;
the page it links to is vultilion's), [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), cropped to a square and made smaller.
"""


def photo() -> Image.Image:
    """The photograph: the middle of `flower.jpg`, 192 by 192 pixels."""
    whole = Image.fromarray(load_sample_image("flower.jpg"))
    left, top = (whole.width - whole.height) // 2, 0
    return whole.crop((left, top, left + whole.height, whole.height)).resize((192, 192), Image.Resampling.LANCZOS)


def write_samples(folder: Path) -> None:
    """Write the pictures and their page into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples():
        sample.scene.image().save(folder / sample.name, optimize=True)
    photo().save(folder / "photo-flower.jpg", quality=90)
    (folder / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_samples(Path(sys.argv[1] if len(sys.argv) > 1 else "samples"))
