"""The true answer of a question about a scene, found by reading the question, not by having drawn it.

A question is asked once and answered again for every edit of its scene: the
askers draw questions, this answers them. `None` stands for "not unique" (two
sevens, or a cover that may hide one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from introspect_probes.worlds.cases import Source
from introspect_probes.worlds.questions import HIDDEN, NONE, NOWHERE
from introspect_probes.worlds.scene import COLOR_NAMES, Cell, Scene

_COLOR = f"({'|'.join(COLOR_NAMES)})"
_AT = re.compile(r"what (digit|color) is at row ([0-9]{1,3}) column ([0-9]{1,3}) \?")
_NOTE = re.compile(r"the (digit|color) at row ([0-9]{1,3}) column ([0-9]{1,3}) is (\w+) \.")


class Truth(NamedTuple):
    """An answer, the cells that hold it, and where it is to be had."""

    answer: str
    evidence: tuple[int, ...]
    source: Source = "image"


def true_answer(question: str, scene: Scene, context: Sequence[str] = ()) -> Truth | None:
    """Answer a question of the picture kinds.

    A note about a cell counts where the cell shows no digit.

    Returns:
        The truth, or `None` where it is not unique or the question is not one of the world's.
    """
    for pattern, solve in _SOLVERS:
        if match := pattern.fullmatch(question):
            truth = solve(scene, match)
            return truth if pattern is not _AT else _with_note(truth, match, context)
    return None


def _everywhere(scene: Scene) -> tuple[int, ...]:
    return tuple(range(len(scene.cells)))


def _at(scene: Scene, match: re.Match[str]) -> Truth | None:
    what, row, column = match[1], int(match[2]), int(match[3])
    if not (1 <= row <= scene.rows and 1 <= column <= scene.columns):
        return None
    index = (row - 1) * scene.columns + column - 1
    cell = scene.cells[index]
    if cell is None or cell.covered:
        return Truth(NONE if cell is None else HIDDEN, (index,))
    return Truth(str(cell.digit) if what == "digit" else cell.color, (index,))


def _with_note(truth: Truth | None, asked: re.Match[str], context: Sequence[str]) -> Truth | None:
    if truth is None or truth.answer not in (NONE, HIDDEN):
        return truth
    for note in context:
        stated = _NOTE.fullmatch(note)
        if stated and stated.group(1, 2, 3) == asked.group(1, 2, 3):
            return Truth(stated[4], truth.evidence, "context")
    return truth


def _only(scene: Scene, fits: Callable[[Cell], bool], read: Callable[[int, Cell], str], missing: str) -> Truth | None:
    """The answer about the only cell that fits."""
    found = [(i, c) for i, c in scene.visible() if fits(c)]
    if scene.has_cover() or len(found) > 1:
        return None
    return Truth(read(*found[0]), (found[0][0],)) if found else Truth(missing, _everywhere(scene))


def _where(scene: Scene, match: re.Match[str]) -> Truth | None:
    def fits(cell: Cell) -> bool:
        return cell.color == match[1] and str(cell.digit) == match[2]

    return _only(scene, fits, lambda index, _: "row {} column {}".format(*scene.place(index)), NOWHERE)


def _color_of(scene: Scene, match: re.Match[str]) -> Truth | None:
    return _only(scene, lambda cell: str(cell.digit) == match[1], lambda _, cell: cell.color, NONE)


def _digit_of(scene: Scene, match: re.Match[str]) -> Truth | None:
    return _only(scene, lambda cell: cell.color == match[1], lambda _, cell: str(cell.digit), NONE)


def _exists(scene: Scene, match: re.Match[str]) -> Truth | None:
    found = tuple(i for i, c in scene.visible() if str(c.digit) == match[2] and match[1] in (None, c.color))
    if found:
        return Truth("yes", found)
    return None if scene.has_cover() else Truth("no", _everywhere(scene))


def _count(scene: Scene, match: re.Match[str]) -> Truth | None:
    if scene.has_cover():
        return None
    return Truth(str(sum(match[1] in ("digits", c.color) for _, c in scene.visible())), _everywhere(scene))


def _row(scene: Scene, match: re.Match[str]) -> tuple[tuple[int, ...], list[int]] | None:
    """Evidence and digits of a row without a cover; an empty row's cells hold its answer."""
    indices = tuple(i for i in _everywhere(scene) if scene.place(i)[0] == int(match[1]))
    cells = {i: cell for i in indices if (cell := scene.cells[i]) is not None}
    if not indices or any(cell.covered for cell in cells.values()):
        return None
    return tuple(cells) or indices, [cell.digit for cell in cells.values()]


def _sum_row(scene: Scene, match: re.Match[str]) -> Truth | None:
    row = _row(scene, match)
    return None if row is None else Truth(str(sum(row[1])), row[0])


def _add_row(scene: Scene, match: re.Match[str]) -> Truth | None:
    row = _row(scene, match)
    if row is None or not row[1]:
        return None
    evidence, digits = row
    return Truth(f"{' plus '.join(map(str, digits))} is {sum(digits)}", evidence)


def _describe(scene: Scene, match: re.Match[str]) -> Truth | None:
    del match
    parts = [
        "row {} column {} ".format(*scene.place(i)) + (HIDDEN if cell.covered else f"{cell.color} {cell.digit}")
        for i, cell in enumerate(scene.cells)
        if cell is not None
    ]
    return Truth(" , ".join(parts) or "nothing", _everywhere(scene))


_Solver = Callable[[Scene, re.Match[str]], Truth | None]
_SOLVERS: tuple[tuple[re.Pattern[str], _Solver], ...] = (
    (_AT, _at),
    (re.compile(rf"where is the {_COLOR} ([0-9]) \?"), _where),
    (re.compile(r"what color is the ([0-9]) \?"), _color_of),
    (re.compile(rf"what digit is {_COLOR} \?"), _digit_of),
    (re.compile(rf"is there a (?:{_COLOR} )?([0-9]) \?"), _exists),
    (re.compile(rf"how many (digits|{_COLOR}) \?"), _count),
    (re.compile(r"what is the sum of row ([0-9]{1,3}) \?"), _sum_row),
    (re.compile(r"add up row ([0-9]{1,3})"), _add_row),
    (re.compile(r"describe everything"), _describe),
)
