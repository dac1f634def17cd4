"""Interventions: the same case with its evidence, other cells, context or whole picture changed.

Each is a pure function that returns a new case in the same group (twins are
never split between fitting and testing), with the answer that is true of it, or
`None` where the case offers nothing to edit in that way. A changed cell keeps
its size, angle, place and strength of ink, and no other pixel changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from introspect_probes.errors import CaseError
from introspect_probes.worlds.cases import Case, Prior
from introspect_probes.worlds.digits import Pool, pool_by_digit
from introspect_probes.worlds.facts import RELATIONS
from introspect_probes.worlds.questions import NONE, PICTURE_KINDS, caption_of, prior_of
from introspect_probes.worlds.scene import CELL_PIXELS, COLOR_NAMES, PHOTOGRAPHERS, Cell, Scene, draw_cell
from introspect_probes.worlds.truth import Truth, true_answer

Change = Literal["digit", "color", "both", "remove"]
CHANGES: tuple[Change, ...] = get_args(Change)
_TRIES = 64
_DEFAULT_CONTRAST = 0.9
_KINDS_WITH_PRIOR = ("digit_at", "color_at", "digit_of", "color_of")


def edit_evidence(case: Case, cells: Iterable[int], rng: np.random.Generator, pool: Pool, change: Change = "both") -> Case | None:
    """Redraw cells with another digit, another colour or both, or take them away.

    Covered cells come out from under their cover; where all the given cells are
    empty, one of them is filled. The question keeps a unique answer, and gets
    another one wherever some draw allows it.

    Args:
        case: a case with a scene.
        cells: the cells to change, such as `case.evidence` or a claim's `evidence`.
        rng: decides everything that is drawn.
        pool: where donor digits come from.
        change: what changes.

    Returns:
        The edited case; `None` without a scene, without cells, with nothing to remove, or where every draw was ambiguous.

    Raises:
        CaseError: an unknown `change` or a cell outside the scene.
    """
    if change not in CHANGES:
        raise CaseError(f"change must be one of {', '.join(CHANGES)}, got {change!r}")
    scene = case.scene
    if scene is None:
        return None
    chosen = _checked(scene, cells)
    filled = [i for i in chosen if scene.cells[i] is not None]
    if not chosen or (change == "remove" and not filled):
        return None
    targets = filled or [chosen[int(rng.integers(len(chosen)))]]

    return _redraw(case, scene, targets, rng, pool, change, f"evidence-{change}", lambda truth: truth.answer not in case.answers)


def edit_distractors(case: Case, cells: Iterable[int], rng: np.random.Generator, pool: Pool, change: Change = "both") -> Case | None:
    """Redraw as many other filled cells as `edit_evidence` would change, or as many as there are.

    The question keeps a unique answer, and with it, where `cells` hold all of the
    case's evidence, the answer that it had.

    Returns:
        The edited case; `None` where no other cell can be changed so. Arguments and errors as for `edit_evidence`.
    """
    if change not in CHANGES:
        raise CaseError(f"change must be one of {', '.join(CHANGES)}, got {change!r}")
    scene = case.scene
    if scene is None:
        return None
    chosen = _checked(scene, cells)
    others = [i for i, _ in scene.visible() if i not in chosen]
    count = min(len(others), max(1, sum(scene.cells[i] is not None for i in chosen)))
    if not count:
        return None
    for number in range(count, 0, -1):
        targets = sorted(int(i) for i in rng.choice(others, size=number, replace=False))
        edited = _redraw(case, scene, targets, rng, pool, change, f"distractors-{change}", lambda _: True)
        if edited is not None:
            return edited
    return None


def edit_context(case: Case, rng: np.random.Generator) -> Case | None:
    """State another value in the note or, where there is no note, name another photographer.

    Returns:
        The edited case, whose answer is the note's new value; `None` where the case has neither note nor caption.
    """
    for position, passage in enumerate(case.context):
        found = _stated(passage)
        if found is not None:
            value, options = found
            other = _another(rng, options, value)
            head, _, tail = passage.rpartition(f" {value} ")
            context = (*case.context[:position], f"{head} {other} {tail}", *case.context[position + 1 :])
            answers = (other,) if case.source == "context" else case.answers
            return replace(case, id=_tagged(case.id, "context", other), context=context, answers=answers)
    if case.scene is None or case.scene.caption is None:
        return None
    other = _another(rng, tuple(PHOTOGRAPHERS), case.scene.caption)
    scene = replace(case.scene, caption=other)
    context = (*caption_of(scene), *case.context[1:])
    edited = replace(case, id=_tagged(case.id, "caption", other), scene=scene, context=context)
    return replace(edited, prior=_prior(edited))


def blank(case: Case) -> Case | None:
    """The case with an empty scene: paper and noise alone. Out of distribution, and no evidence of looking.

    Returns:
        The blank case; `None` without a scene.
    """
    if case.scene is None:
        return None
    scene = replace(case.scene, cells=(None,) * len(case.scene.cells))
    return _with_scene(case, scene, f"{case.id}-blank")


def grey(case: Case) -> Case | None:
    """The case with a plain grey picture of the same size. Out of distribution, like `blank`.

    Returns:
        The grey case; `None` without a scene.
    """
    empty = blank(case)
    if empty is None or empty.scene is None:
        return None
    size = (empty.scene.columns * CELL_PIXELS, empty.scene.rows * CELL_PIXELS)
    return replace(empty, id=f"{case.id}-grey", scene=None, image=Image.new("RGB", size, (128, 128, 128)))


def _redraw(
    case: Case,
    scene: Scene,
    targets: list[int],
    rng: np.random.Generator,
    pool: Pool,
    change: Change,
    name: str,
    is_wanted: Callable[[Truth], bool],
) -> Case | None:
    """Redraw the targets until the truth is as wanted; else the first draw that leaves one truth."""
    allowed: Scene | None = None
    for _ in range(1 if change == "remove" else _TRIES):
        edited = scene
        for index in targets:
            edited = edited.with_cell(index, _changed(scene, index, rng, pool, change))
        truth = _truth(case, edited)
        if truth is not None and is_wanted(truth):
            return _with_scene(case, edited, _tagged(case.id, name, repr(edited.cells)))
        if truth is not None and allowed is None:
            allowed = edited
    return None if allowed is None else _with_scene(case, allowed, _tagged(case.id, name, repr(allowed.cells)))


def _changed(scene: Scene, index: int, rng: np.random.Generator, pool: Pool, change: Change) -> Cell | None:
    if change == "remove":
        return None
    cell = scene.cells[index]
    if cell is None:
        inks = [c.contrast for _, c in scene.visible()]
        color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
        return draw_cell(rng, pool, int(rng.integers(10)), color, float(np.mean(inks)) if inks else _DEFAULT_CONTRAST)
    shown = replace(cell, covered=False)
    if change in ("color", "both"):
        shown = replace(shown, color=_another(rng, COLOR_NAMES, cell.color))
    if change in ("digit", "both"):
        digit = int(rng.choice([d for d in range(10) if d != cell.digit]))
        samples = pool_by_digit(pool)[digit]
        shown = replace(shown, sample=samples[int(rng.integers(len(samples)))])
    return shown


def _truth(case: Case, scene: Scene) -> Truth | None:
    """The truth in an edited scene; a fact's is untouched by any picture."""
    if case.kind in PICTURE_KINDS:
        return true_answer(case.question, scene, case.context)
    return Truth(case.answers[0], case.evidence, case.source)


def _with_scene(case: Case, scene: Scene, name: str) -> Case:
    # Only an emptied row, which nobody asks to add up, leaves no truth here.
    truth = _truth(case, scene) or Truth(NONE, case.evidence)
    edited = replace(case, id=name, scene=scene, answers=(truth.answer,), evidence=truth.evidence, source=truth.source, spans=None)
    return replace(edited, prior=_prior(edited))


def _prior(case: Case) -> Prior:
    """What the priors say about the one visible cell that answers the question."""
    if case.kind not in _KINDS_WITH_PRIOR or case.scene is None or len(case.evidence) != 1:
        return "none"
    cell = case.scene.cells[case.evidence[0]]
    return "none" if cell is None or cell.covered else prior_of(case.scene, cell)


def _stated(passage: str) -> tuple[str, tuple[str, ...]] | None:
    """The value that a note states and the values it could state; `None` for a caption."""
    words = passage.split()
    if len(words) < 3 or words[-1] != ".":
        return None
    value = words[-2]
    if words[:3] == ["the", "digit", "at"]:
        return value, tuple(str(d) for d in range(10))
    if words[:3] == ["the", "color", "at"]:
        return value, COLOR_NAMES
    for relation in RELATIONS:
        if value in relation.values and passage == relation.statement.format(entity=words[0], value=value):
            return value, relation.values
    return None


def _another(rng: np.random.Generator, options: tuple[str, ...], current: str) -> str:
    others = [option for option in options if option != current]
    return others[int(rng.integers(len(others)))]


def _checked(scene: Scene, cells: Iterable[int]) -> list[int]:
    chosen = sorted(set(cells))
    if any(not 0 <= index < len(scene.cells) for index in chosen):
        raise CaseError(f"cells must be in 0..{len(scene.cells) - 1}, got {chosen}")
    return chosen


def _tagged(name: str, edit: str, content: str) -> str:
    """An id that tells edits of one case apart by what they hold."""
    return f"{name}-{edit}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
