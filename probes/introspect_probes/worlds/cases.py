"""A labelled case, and the `cases.jsonl` form in which anyone's cases are exchanged."""

from __future__ import annotations

import base64
import codecs
import io
import re
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
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


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

    What only this world knows (scene, evidence, source, prior) has no place in the format.

    Returns:
        The number of cases written.

    Raises:
        CaseError: two cases of one id.
    """
    folder = path.parent / f"{path.stem}-images"
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    with path.open("w", encoding="utf-8") as lines:
        for case in cases:
            if case.id in seen:
                raise CaseError(f"the id {case.id!r} occurs twice: ids must be unique in a file")
            picture = case.picture()
            name = None
            if picture is not None:
                # A foreign id may hold anything, a path among them; `~` keeps the stand-ins apart from real ids.
                stem = case.id if _FILE_NAME.fullmatch(case.id) else f"~{len(seen):06d}"
                name = f"{folder.name}/{stem}.png"
                picture.save(path.parent / name)
            seen.add(case.id)
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
    return len(seen)


def read_cases(path: Path) -> Iterator[Case]:
    """Read a `cases.jsonl`, one case at a time.

    Raises:
        CaseError: the file does not open; or, naming the line: bad JSON, an unknown or missing field, an id met before,
            spans outside the answer, or an image that does not open or lies outside the file's folder.
    """
    seen: set[str] = set()
    try:
        lines = path.open("rb")
    except OSError as problem:
        raise CaseError(f"cannot read the cases: {problem}") from problem
    with lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not text.strip():
                continue
            try:
                case = _case_of(CaseRecord.model_validate_json(text), path.parent)
            except ValidationError as problem:
                raise CaseError(f"{path.name} line {number}: {_explained(problem)}") from problem
            except ValueError as problem:
                raise CaseError(f"{path.name} line {number}: {problem}") from problem
            if case.id in seen:
                raise CaseError(f"{path.name} line {number}: the id {case.id!r} occurs twice: ids must be unique in a file")
            seen.add(case.id)
            yield case


def _explained(problem: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, error['loc'])) or 'the line'}: {error['msg']}" for error in problem.errors())


def _case_of(record: CaseRecord, folder: Path) -> Case:
    answers = record.answers or ([record.answer] if record.answer is not None else None)
    if answers is None:
        raise ValueError("a case needs `answer` or `answers`")
    for start, end in record.spans or ():
        if not 0 <= start < end <= len(answers[0]):
            raise ValueError(f"a span must lie in the answer's {len(answers[0])} characters, got [{start}, {end}]")
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
    """The picture behind a path or `data:` URI, in RGB; every failure is a `ValueError`."""
    is_data = reference[:5].lower() == "data:"
    name = f"{reference[:40]}..." if is_data and len(reference) > 40 else reference
    try:
        with Image.open(_data_of(reference) if is_data else _inside(folder, reference)) as image:
            return image.convert("RGB")
    # Pillow raises SyntaxError on some broken files, and has an error of its own for absurd sizes.
    except (OSError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ValueError(f"the image {name} cannot be opened: {problem}") from problem


def _data_of(reference: str) -> io.BytesIO:
    header, _, payload = reference.partition(",")
    if not header.lower().endswith(";base64"):
        raise ValueError("a data: URI must be base64")
    return io.BytesIO(base64.b64decode(payload, validate=True))


def _inside(folder: Path, reference: str) -> Path:
    """The file a path names; a cases file from elsewhere must not read the rest of the disk."""
    target = (folder / reference).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"the image {reference} lies outside the folder of the cases file: move it there, or use a data: URI")
    return target
