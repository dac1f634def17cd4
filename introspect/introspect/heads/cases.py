"""What visual heads are found with: a picture, a question, its answer, and where each piece of the answer is to be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from introspect.errors import HeadScoresError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""

TRANSCRIBE = "Transcribe the text in this image."
"""What a case of read text asks where it does not say."""


@dataclass(frozen=True)
class Evidence:
    """Characters `start` to `end` of an answer, and the boxes that show them."""

    start: int
    end: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class HeadCase:
    """One picture with an answer that the model is made to give.

    Attributes:
        id: names the case in messages.
        image: the picture that the boxes are measured in.
        question: what is asked.
        answer: the true answer, teacher-forced.
        evidence: where its pieces are to be seen; what is not listed is not scored.
        context: passages before the question.
    """

    id: str
    image: Image.Image
    question: str
    answer: str
    evidence: tuple[Evidence, ...]
    context: tuple[str, ...] = ()


def read_head_cases(path: Path) -> Iterator[HeadCase]:
    """Cases from a JSONL file, one object a line.

    `image` (a path in the file's folder), `text` (the answer), `boxes` (a list of objects with
    `box`, four pixels, and `span`, two offsets into the text, or `text`, a piece that occurs in it
    once), and optionally `question` and `id`.

    Raises:
        HeadScoresError: the file cannot be read; or, naming the line, what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise HeadScoresError(f"cannot read cases from {path}: {problem}") from problem
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _case_of(json.loads(line), path.parent, f"line {number}")
            except (ValueError, KeyError, TypeError, OSError) as problem:
                reason = f"{problem.args[0]!r} is missing" if isinstance(problem, KeyError) else str(problem)
                raise HeadScoresError(f"{path.name} line {number}: {reason}") from problem


def _case_of(record: dict[str, Any], folder: Path, name: str) -> HeadCase:
    unknown = set(record) - {"id", "image", "text", "boxes", "question"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    target = (folder / record["image"]).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"the image {record['image']} lies outside the folder of the cases file")
    text = str(record["text"])
    with Image.open(target) as image:
        picture = image.convert("RGB")
    evidence = tuple(_evidence_of(entry, text) for entry in record["boxes"])
    return HeadCase(str(record.get("id", name)), picture, str(record.get("question", TRANSCRIBE)), text, evidence)


def _evidence_of(entry: dict[str, Any], text: str) -> Evidence:
    left, top, right, bottom = (float(value) for value in entry["box"])
    if not (left < right and top < bottom):
        raise ValueError(f"a box is left, top, right, bottom, got {entry['box']}")
    if "span" in entry:
        start, end = (int(value) for value in entry["span"])
    else:
        piece = str(entry["text"])
        if text.count(piece) != 1 or not piece:
            raise ValueError(f"{piece!r} must occur in the text once, or be given as a span")
        start, end = text.index(piece), text.index(piece) + len(piece)
    if not 0 <= start < end <= len(text):
        raise ValueError(f"a span must lie in the text's {len(text)} characters, got [{start}, {end}]")
    return Evidence(start, end, ((left, top, right, bottom),))
