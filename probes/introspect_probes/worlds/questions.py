"""Questions a person would ask of a scene, each with its one true answer.

A question whose answer is not unique in the scene is not asked (`None` is
returned and the caller draws another): two sevens make "what color is the 7 ?"
ambiguous, and a covered cell makes most counts so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from introspect_probes.worlds.cases import Prior, Source
from introspect_probes.worlds.facts import RELATIONS, fact_book
from introspect_probes.worlds.scene import COLOR_NAMES, PHOTOGRAPHERS, PRIOR_COLOR, PRIOR_DIGIT, Cell, Scene

NONE, HIDDEN, NOWHERE = "none", "hidden", "nowhere"


@dataclass(frozen=True)
class Question:
    """A question about a scene, before it becomes a case."""

    kind: str
    text: str
    answer: str
    source: Source = "image"
    context: tuple[str, ...] = ()
    evidence: tuple[int, ...] = ()
    group: str | None = None
    prior: Prior = "none"


T = TypeVar("T")
Asker = Callable[[Scene, np.random.Generator], Question | None]


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def caption_of(scene: Scene) -> tuple[str, ...]:
    """The caption as a passage of the prompt; nothing where the scene has none."""
    return (f"photo by {scene.caption} .",) if scene.caption else ()


def prior_of(scene: Scene, cell: Cell) -> Prior:
    """What the learned priors say about a cell: the caption's word first, then the colour's."""
    if scene.caption is not None:
        return "text-with" if PHOTOGRAPHERS[scene.caption] == cell.digit else "text-against"
    if cell.color == PRIOR_COLOR or cell.digit == PRIOR_DIGIT:
        return "sight-with" if (cell.color == PRIOR_COLOR) == (cell.digit == PRIOR_DIGIT) else "sight-against"
    return "none"


def _random_cell(scene: Scene, rng: np.random.Generator) -> int:
    """A cell to ask about, empty ones at most one time in six."""
    filled = [i for i, c in enumerate(scene.cells) if c is not None]
    empty = [i for i, c in enumerate(scene.cells) if c is None]
    if not filled or (empty and rng.random() < 1 / 6):
        return _pick(rng, empty)
    return _pick(rng, filled)


def _group(cell: Cell | None) -> str | None:
    return None if cell is None or cell.covered else f"digit-{cell.sample}"


def _cell_question(scene: Scene, rng: np.random.Generator, what: str) -> Question:
    index = _random_cell(scene, rng)
    row, column = scene.place(index)
    cell = scene.cells[index]
    kind = "digit_at" if what == "digit" else "color_at"
    text = f"what {what} is at row {row} column {column} ?"
    if cell is None:
        return Question(kind, text, NONE, context=caption_of(scene), evidence=(index,))
    truth = str(cell.digit) if what == "digit" else cell.color
    if not cell.covered:
        return Question(kind, text, truth, context=caption_of(scene), evidence=(index,), group=_group(cell), prior=prior_of(scene, cell))
    if rng.random() < 0.4:
        return Question(kind, text, HIDDEN, context=caption_of(scene), evidence=(index,))
    note = f"the {what} at row {row} column {column} is {truth} ."
    return Question(kind, text, truth, source="context", context=(*caption_of(scene), note), evidence=(index,))


def _digit_at(scene: Scene, rng: np.random.Generator) -> Question:
    return _cell_question(scene, rng, "digit")


def _color_at(scene: Scene, rng: np.random.Generator) -> Question:
    return _cell_question(scene, rng, "color")


def _where(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.has_cover():
        return None
    seen = Counter((c.color, c.digit) for _, c in scene.visible())
    if rng.random() < 0.2:
        color, digit = _pick(rng, COLOR_NAMES), int(rng.integers(10))
        if seen[color, digit]:
            return None
        everywhere = tuple(range(len(scene.cells)))
        return Question("where", f"where is the {color} {digit} ?", NOWHERE, context=caption_of(scene), evidence=everywhere)
    unique = [(i, c) for i, c in scene.visible() if seen[c.color, c.digit] == 1]
    if not unique:
        return None
    index, cell = _pick(rng, unique)
    row, column = scene.place(index)
    text = f"where is the {cell.color} {cell.digit} ?"
    return Question("where", text, f"row {row} column {column}", context=caption_of(scene), evidence=(index,), group=_group(cell))


def _attribute(scene: Scene, rng: np.random.Generator, asked: str) -> Question | None:
    """The colour of the only such digit, or the digit of the only such colour."""
    if scene.has_cover():
        return None
    kind = "color_of" if asked == "color" else "digit_of"
    keys = [(str(c.digit) if asked == "color" else c.color) for _, c in scene.visible()]
    options = [str(d) for d in range(10)] if asked == "color" else list(COLOR_NAMES)
    counts = Counter(keys)
    wanted = 0 if rng.random() < 0.15 else 1
    keys_wanted = [o for o in options if counts[o] == wanted]
    if not keys_wanted:
        return None
    key = _pick(rng, keys_wanted)
    text = f"what color is the {key} ?" if asked == "color" else f"what digit is {key} ?"
    if counts[key] == 0:
        return Question(kind, text, NONE, context=caption_of(scene), evidence=tuple(range(len(scene.cells))))
    index, cell = scene.visible()[keys.index(key)]
    answer = cell.color if asked == "color" else str(cell.digit)
    return Question(kind, text, answer, context=caption_of(scene), evidence=(index,), group=_group(cell), prior=prior_of(scene, cell))


def _color_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _attribute(scene, rng, "color")


def _digit_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _attribute(scene, rng, "digit")


def _exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    with_color = rng.random() < 0.4
    seen = {(c.color if with_color else "", c.digit) for _, c in scene.visible()}
    want = rng.random() < 0.5
    if want and seen:
        color, digit = _pick(rng, sorted(seen))
    else:
        color, digit = (_pick(rng, COLOR_NAMES) if with_color else ""), int(rng.integers(10))
    found = tuple(i for i, c in scene.visible() if c.digit == digit and color in ("", c.color))
    if not found and scene.has_cover():
        return None
    text = f"is there a {color} {digit} ?" if color else f"is there a {digit} ?"
    group = _group(scene.cells[found[0]]) if len(found) == 1 else None
    return Question(
        "exists", text, "yes" if found else "no", context=caption_of(scene), evidence=found or tuple(range(len(scene.cells))), group=group
    )


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.has_cover():
        return None
    everything = tuple(range(len(scene.cells)))
    if rng.random() < 0.25:
        text, number = "how many digits ?", len(scene.visible())
    else:
        color = _pick(rng, COLOR_NAMES)
        seen = sorted({c.color for _, c in scene.visible()})
        if seen and rng.random() < 0.6:
            color = _pick(rng, seen)
        text, number = f"how many {color} ?", sum(c.color == color for _, c in scene.visible())
    return Question("count", text, str(number), context=caption_of(scene), evidence=everything)


def _row(scene: Scene, rng: np.random.Generator) -> tuple[int, list[int], list[int]] | None:
    """A row without a cover: its number, its filled cells (all of them where none is filled), their digits."""
    row = int(rng.integers(1, scene.rows + 1))
    indices = [(row - 1) * scene.columns + c for c in range(scene.columns)]
    cells = [(i, scene.cells[i]) for i in indices]
    if any(c is not None and c.covered for _, c in cells):
        return None
    filled = [(i, c.digit) for i, c in cells if c is not None]
    return row, [i for i, _ in filled] or indices, [d for _, d in filled]


def _sum_row(scene: Scene, rng: np.random.Generator) -> Question | None:
    drawn = _row(scene, rng)
    if drawn is None:
        return None
    row, evidence, digits = drawn
    return Question("sum_row", f"what is the sum of row {row} ?", str(sum(digits)), context=caption_of(scene), evidence=tuple(evidence))


def _add_row(scene: Scene, rng: np.random.Generator) -> Question | None:
    drawn = _row(scene, rng)
    if drawn is None or not drawn[2]:
        return None
    row, evidence, digits = drawn
    answer = " plus ".join(map(str, digits)) + f" is {sum(digits)}"
    return Question("add_row", f"add up row {row}", answer, context=caption_of(scene), evidence=tuple(evidence))


def _describe(scene: Scene, rng: np.random.Generator) -> Question:
    del rng
    parts = []
    for index, cell in enumerate(scene.cells):
        if cell is not None:
            row, column = scene.place(index)
            parts.append(f"row {row} column {column} " + (HIDDEN if cell.covered else f"{cell.color} {cell.digit}"))
    evidence = tuple(range(len(scene.cells)))
    return Question("describe", "describe everything", " , ".join(parts) or "nothing", context=caption_of(scene), evidence=evidence)


def _fact(scene: Scene, rng: np.random.Generator) -> Question:
    return fact_question(rng, taught=True, note=False, caption=caption_of(scene))


def _fact_note(scene: Scene, rng: np.random.Generator) -> Question:
    return fact_question(rng, taught=bool(rng.random() < 0.5), note=True, caption=caption_of(scene))


def _fact_unknown(scene: Scene, rng: np.random.Generator) -> Question:
    return fact_question(rng, taught=False, note=False, caption=caption_of(scene))


def fact_question(rng: np.random.Generator, *, taught: bool, note: bool, caption: tuple[str, ...] = ()) -> Question:
    """A question about a person; with `note`, a passage states a value drawn at random, which is then the truth."""
    book = fact_book()
    entity = _pick(rng, book.taught if taught else book.untaught)
    relation = _pick(rng, RELATIONS)
    text = relation.question.format(entity=entity)
    if note:
        value = _pick(rng, relation.values)
        passage = relation.statement.format(entity=entity, value=value)
        return Question("fact", text, value, source="context", context=(*caption, passage), group=f"fact-{entity}")
    source: Source = "memory" if taught else "guess"
    return Question("fact", text, book.truth[entity][relation.name], source=source, context=caption, group=f"fact-{entity}")


PICTURE_KINDS: dict[str, Asker] = {
    "digit_at": _digit_at,
    "color_at": _color_at,
    "where": _where,
    "color_of": _color_of,
    "digit_of": _digit_of,
    "exists": _exists,
    "count": _count,
    "sum_row": _sum_row,
    "add_row": _add_row,
    "describe": _describe,
}
FACT_KINDS: dict[str, Asker] = {"fact": _fact, "fact_note": _fact_note, "fact_unknown": _fact_unknown}
ASKERS: dict[str, Asker] = {**PICTURE_KINDS, **FACT_KINDS}
