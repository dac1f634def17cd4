"""A labelled case, and the `cases.jsonl` form in which anyone's cases are exchanged."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from introspect_probes.errors import CaseError
from introspect_probes.worlds.scene import Scene

Source = Literal["image", "memory", "guess", "context"]
Prior = Literal["none", "sight-with", "sight-against", "text-with", "text-against"]


@dataclass(frozen=True)
class Case:
    """One question with its exact answer.

    Attributes:
        id: unique in its set.
        kind: the question's template, such as `digit_at`.
        question: what is asked.
        answers: every accepted answer, the usual one first.
        group: cases that share it are never split between fitting and testing.
        source: where the truth is to be had (`guess`: nowhere, it was never taught).
        context: passages given in the prompt before the question.
        scene: the picture's scene; `None` where no picture is shown, or the picture is a file.
        image: a picture that is not a scene's.
        evidence: cells (reading order) that hold the answer.
        prior: whether a learned prior speaks for or against the true answer.
        pool: the digit pool the picture was drawn from, or `None` for foreign cases.
        spans: character spans of an expected answer that are false, where the user marked any.
    """

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    group: str
    source: Source = "image"
    context: tuple[str, ...] = ()
    scene: Scene | None = None
    image: Image.Image | None = None
    evidence: tuple[int, ...] = ()
    prior: Prior = "none"
    pool: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None

    def picture(self) -> Image.Image | None:
        """The image to show, or `None` for a text-only case."""
        return self.scene.image() if self.scene is not None else self.image


class CaseRecord(BaseModel):
    """One line of `cases.jsonl`. `image` is a path relative to the file, or a `data:` URI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    image: str | None = None
    question: str
    answer: str | None = None
    answers: list[str] | None = Field(default=None, min_length=1)
    group: str | None = None
    context: str | list[str] | None = None
    spans: list[tuple[int, int]] | None = None
    kind: str = "question"
    pool: str | None = None


def write_cases(cases: Iterable[Case], path: Path) -> int:
    """Write cases to `path` (one JSON object a line) with their pictures in a folder beside it.

    Returns:
        The number of cases written.
    """
    folder = path.parent / f"{path.stem}-images"
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for case in cases:
            picture = case.picture()
            name = None
            if picture is not None:
                name = f"{folder.name}/{case.id}.png"
                picture.save(path.parent / name)
            record = CaseRecord(
                id=case.id,
                image=name,
                question=case.question,
                answers=list(case.answers),
                group=case.group,
                context=list(case.context) or None,
                spans=list(case.spans) if case.spans is not None else None,
                kind=case.kind,
                pool=case.pool,
            )
            lines.write(record.model_dump_json(exclude_none=True) + "\n")
            count += 1
    return count


def read_cases(path: Path) -> Iterator[Case]:
    """Read a `cases.jsonl`.

    Raises:
        CaseError: naming the line, on bad JSON, an unknown or missing field, or an image that does not open.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = CaseRecord.model_validate_json(line)
                yield _case_of(record, path.parent)
            except (ValidationError, OSError, ValueError, json.JSONDecodeError) as problem:
                raise CaseError(f"{path.name} line {number}: {problem}") from problem


def _case_of(record: CaseRecord, folder: Path) -> Case:
    answers = record.answers or ([record.answer] if record.answer is not None else None)
    if answers is None:
        raise ValueError("a case needs `answer` or `answers`")
    context = [record.context] if isinstance(record.context, str) else record.context or []
    return Case(
        id=record.id,
        kind=record.kind,
        question=record.question,
        answers=tuple(answers),
        group=record.group or record.id,
        context=tuple(context),
        image=_open_image(record.image, folder) if record.image is not None else None,
        pool=record.pool,
        spans=tuple(record.spans) if record.spans is not None else None,
    )


def _open_image(reference: str, folder: Path) -> Image.Image:
    if reference.startswith("data:"):
        header, _, payload = reference.partition(",")
        if not header.endswith(";base64"):
            raise ValueError("a data: URI must be base64")
        data = base64.b64decode(payload, validate=True)
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    with Image.open(folder / reference) as image:
        return image.convert("RGB")
