"""The world generates the same cases every time, each with the one answer that its picture allows."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from introspect_probes.errors import CaseError
from introspect_probes.worlds.digits import POOLS, label_of, pool_by_digit, pool_of
from introspect_probes.worlds.facts import RELATIONS, fact_book
from introspect_probes.worlds.questions import ASKERS, FACT_KINDS, PICTURE_KINDS
from introspect_probes.worlds.scene import (
    COLOR_NAMES,
    COUNTER_PRIOR,
    NATURAL,
    PHOTOGRAPHERS,
    Cell,
    Scene,
    SceneStyle,
    draw_scene,
)
from introspect_probes.worlds.truth import true_answer
from introspect_probes.worlds.world import get_world

WORLD = get_world("digits")
CASES = list(WORLD.cases(2000, seed=5, pool="calibration"))


def pixels(case):
    return None if case.scene is None else case.scene.pixels().tobytes()


def test_a_seed_gives_the_same_cases_and_pixels():
    again = list(WORLD.cases(40, seed=5, pool="calibration"))
    assert again == CASES[:40]
    assert [pixels(case) for case in again] == [pixels(case) for case in CASES[:40]]


def test_any_case_can_be_made_alone():
    assert list(WORLD.cases(3, seed=5, pool="calibration", start=1234)) == CASES[1234:1237]


@pytest.mark.parametrize(("seed", "pool"), [(6, "calibration"), (5, "test")])
def test_another_seed_or_pool_gives_other_scenes(seed, pool):
    others = list(WORLD.cases(50, seed=seed, pool=pool))
    layouts = [(c.question, c.scene and [cell is None for cell in c.scene.cells]) for c in CASES[:50]]
    assert sum(a == (c.question, c.scene and [cell is None for cell in c.scene.cells]) for a, c in zip(layouts, others, strict=True)) < 5


def test_ids_are_unique_and_name_their_origin():
    assert len({case.id for case in CASES}) == len(CASES)
    assert CASES[345].id == "digits-calibration-5-000345"


def test_the_pools_share_no_image_and_hold_every_digit():
    images = {pool: [i for digit in pool_by_digit(pool) for i in digit] for pool in POOLS}
    assert sorted(i for pool in POOLS for i in images[pool]) == list(range(1797))
    for pool in POOLS:
        assert all(label_of(i) == digit for digit in range(10) for i in pool_by_digit(pool)[digit])
        assert min(len(samples) for samples in pool_by_digit(pool)) >= 15


def test_pictures_hold_digits_of_the_asked_pool_only():
    cells = [cell for case in CASES if case.scene for cell in case.scene.cells if cell is not None]
    assert len(cells) > 5000
    assert {pool_of(cell.sample) for cell in cells} == {"calibration"}


def naive_answer(case, grid):
    """The answer read off a grid of (colour, digit), row by row; `None` where two answers fit."""
    words = case.question.removesuffix(" ?").split()
    objects = [(r, c, *grid[r][c]) for r, c in product(range(len(grid)), range(len(grid[0]))) if grid[r][c]]
    if case.kind in ("digit_at", "color_at"):
        content = grid[int(words[5]) - 1][int(words[7]) - 1]
        return "none" if content is None else str(content[case.kind == "digit_at"])
    if case.kind == "where":
        places = [f"row {r + 1} column {c + 1}" for r, c, color, digit in objects if [color, str(digit)] == words[3:5]]
        return "nowhere" if not places else places[0] if len(places) == 1 else None
    if case.kind in ("color_of", "digit_of"):
        fits = [(color, str(digit)) for _, _, color, digit in objects if words[-1] in (color, str(digit))]
        return "none" if not fits else fits[0][case.kind == "digit_of"] if len(fits) == 1 else None
    if case.kind == "exists":
        return "yes" if any(set(words[3:]) <= {color, str(digit)} for _, _, color, digit in objects) else "no"
    if case.kind == "count":
        return str(sum(words[2] in ("digits", color) for _, _, color, _ in objects))
    row = [digit for r, _, _, digit in objects if r + 1 == int(words[-1])]
    return str(sum(row)) if case.kind == "sum_row" else " plus ".join(map(str, row)) + f" is {sum(row)}"


def completions(scene):
    """Every grid that looks like the scene: whatever could be under the cover, is."""
    grid = [[None if (cell := scene.at(r, c)) is None else (cell.color, cell.digit) for c in (1, 2, 3)] for r in (1, 2, 3)]
    hidden = [scene.place(i) for i, cell in enumerate(scene.cells) if cell is not None and cell.covered]
    if not hidden:
        yield grid
        return
    ((row, column),) = hidden
    for content in product(COLOR_NAMES, range(10)):
        grid[row - 1][column - 1] = content
        yield grid


def test_every_answer_is_the_only_one_whatever_the_cover_hides():
    checked = Counter()
    for case in CASES:
        if case.kind not in PICTURE_KINDS or case.kind == "describe":
            continue
        answers = {naive_answer(case, grid) for grid in completions(case.scene)}
        if case.kind in ("digit_at", "color_at") and len(answers) > 1:
            cell = case.scene.cells[case.evidence[0]]
            assert cell.covered
            if case.source == "image":
                assert case.answers == ("hidden",)
            else:
                assert case.context[-1].endswith(f"is {case.answers[0]} .")
                assert case.answers[0] == (str(cell.digit) if case.kind == "digit_at" else cell.color)
            checked["covered"] += 1
            continue
        assert answers == {case.answers[0]}, case
        checked[case.kind] += 1
    assert set(checked) == {*PICTURE_KINDS, "covered"} - {"describe"}
    assert min(checked.values()) >= 15


def test_a_description_names_every_filled_cell_once_and_in_order():
    described = [case for case in CASES if case.kind == "describe"]
    assert len(described) > 100
    for case in described:
        expected = []
        for row, column in product((1, 2, 3), (1, 2, 3)):
            cell = case.scene.at(row, column)
            if cell is not None:
                what = "hidden" if cell.covered else f"{cell.color} {cell.digit}"
                expected.append(f"row {row} column {column} {what}")
        assert case.answers == (" , ".join(expected) or "nothing",)


def test_reading_the_question_again_gives_answer_evidence_and_source():
    for case in CASES:
        if case.kind in PICTURE_KINDS:
            truth = true_answer(case.question, case.scene, case.context)
            assert (truth.answer, sorted(truth.evidence), truth.source) == (case.answers[0], sorted(case.evidence), case.source)


def scene_of(*cells):
    """A scene whose first cells are `(colour, digit, covered)`, the rest empty."""
    drawn = [Cell(pool_by_digit("test")[digit][0], color, covered=covered) for color, digit, covered in cells]
    return Scene(3, 3, (*drawn, *[None] * (9 - len(drawn))), 0.0, 0)


@pytest.mark.parametrize(
    ("question", "one", "two"),
    [
        ("what color is the 7 ?", "red", None),
        ("what digit is red ?", "7", None),
        ("where is the red 7 ?", "row 1 column 1", None),
        ("how many red ?", "1", "2"),
        ("what is the sum of row 1 ?", "7", "14"),
        ("add up row 1", "7 is 7", "7 plus 7 is 14"),
        ("is there a 7 ?", "yes", "yes"),
        ("is there a 8 ?", "no", "no"),
    ],
)
def test_two_sevens_or_a_cover_may_leave_no_unique_answer(question, one, two):
    def answer(*cells):
        truth = true_answer(question, scene_of(*cells))
        return truth and truth.answer

    assert answer(("red", 7, False)) == one
    assert answer(("red", 7, False), ("red", 7, False)) == two
    assert answer(("red", 7, False), ("blue", 1, True)) == ("yes" if one == "yes" else None)


@pytest.mark.parametrize("question", ["what is love ?", "add up row 9", "what digit is at row 4 column 1 ?", "add up row " + "9" * 5000])
def test_a_question_outside_the_world_has_no_answer(question):
    assert true_answer(question, draw_scene(np.random.default_rng(0), "test")) is None


def test_facts_come_with_and_without_pictures_and_notes_contradict_memory():
    book = fact_book()
    facts = list(WORLD.cases(1500, seed=2, pool="probe", kinds=list(FACT_KINDS)))
    share = sum(case.scene is None for case in facts) / len(facts)
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / len(facts))
    by_source = Counter(case.source for case in facts)
    assert all(abs(by_source[s] - 500) < 80 for s in ("memory", "guess", "context"))
    contradicting = 0
    for case in facts:
        (entity,) = [word for word in case.question.split() if word in book.truth]
        relation = next(r for r in RELATIONS if r.question.format(entity=entity) == case.question)
        told, known = case.answers[0], book.truth[entity][relation.name]
        assert case.group == f"fact-{entity}"
        assert (case.scene is None) <= (not any(p.startswith("photo") for p in case.context))
        if case.source == "context":
            assert case.context[-1] == relation.statement.format(entity=entity, value=told)
            contradicting += entity in book.taught and told != known
        else:
            assert told == known
            assert (entity in book.taught) == (case.source == "memory")
    assert contradicting > 150


def test_captions_are_in_the_context():
    captioned = [case for case in CASES if case.scene and case.scene.caption]
    assert len(captioned) > 200
    assert all(case.context[0] == f"photo by {case.scene.caption} ." for case in captioned)
    assert not any(p.startswith("photo") for case in CASES if case.scene and not case.scene.caption for p in case.context)


def within(hits, n, expected):
    return abs(hits / n - expected) < 4 * math.sqrt(expected * (1 - expected) / n) + 1e-12


@pytest.mark.parametrize(
    ("style", "blue_sevens", "captions", "favourites"),
    # A natural caption's digit comes on purpose in 60 %, and by chance in a tenth of the rest.
    [(NATURAL, 0.8, 0.25, 0.6 + 0.4 * 0.1), (COUNTER_PRIOR, 0.0, 0.6, 0.0)],
)
def test_the_priors_are_as_strong_as_the_style_says(style, blue_sevens, captions, favourites):
    rng = np.random.default_rng(8)
    scenes = [draw_scene(rng, "test", style) for _ in range(3000)]
    sevens = [c for s in scenes for c in s.cells if c is not None and c.digit == 7]
    others = [c for s in scenes for c in s.cells if c is not None and c.digit != 7]
    under = [(c.digit, s.caption) for s in scenes if s.caption for c in s.cells if c is not None]
    assert len(sevens) > 700
    assert within(sum(c.color == "blue" for c in sevens), len(sevens), blue_sevens)
    assert within(sum(c.color == "blue" for c in others), len(others), 1 / 6)
    assert within(len([s for s in scenes if s.caption]), len(scenes), captions)
    assert within(sum(PHOTOGRAPHERS[name] == digit for digit, name in under), len(under), favourites)


def test_half_the_cases_are_drawn_against_the_priors():
    cases = list(WORLD.cases(2000, seed=3, pool="test", kinds=["describe"]))
    assert within(sum(case.scene.caption is not None for case in cases), len(cases), 0.5 * 0.25 + 0.5 * 0.6)


def test_the_prior_field_says_what_the_priors_say():
    seen = Counter()
    for case in CASES:
        if case.prior == "none":
            continue
        cell, caption = case.scene.cells[case.evidence[0]], case.scene.caption
        channel, _, verdict = case.prior.partition("-")
        if channel == "text":
            assert (PHOTOGRAPHERS[caption] == cell.digit) == (verdict == "with")
        else:
            assert caption is None
            assert ((cell.color == "blue") and (cell.digit == 7)) == (verdict == "with")
            assert cell.color == "blue" or cell.digit == 7
        seen[case.prior] += 1
    assert set(seen) == {"sight-with", "sight-against", "text-with", "text-against"}


def test_kinds_are_alike_in_weight_or_weighted():
    counts = Counter(case.kind for case in CASES)
    assert set(counts) == {*PICTURE_KINDS, "fact"}
    assert all(within(counts[kind], len(CASES), 1 / len(ASKERS)) for kind in PICTURE_KINDS)
    weighted = Counter(c.kind for c in WORLD.cases(1000, seed=1, pool="test", kinds={"count": 3.0, "where": 1.0}))
    assert within(weighted["count"], 1000, 0.75)


def test_cases_of_one_digit_image_share_a_group():
    named = [case for case in CASES if case.group.startswith("digit-")]
    assert len(named) > 300
    assert all(case.group == f"digit-{case.scene.cells[case.evidence[0]].sample}" for case in named)
    assert {case.group for case in CASES if case.kind == "count"}.isdisjoint(
        case.group for case in WORLD.cases(2000, seed=5, pool="test", kinds=["count"])
    )


def test_a_style_can_be_given():
    cases = WORLD.cases(50, seed=0, pool="test", kinds=["digit_at"], style=SceneStyle(fill=(1.0, 1.0), caption_share=1.0))
    assert all(None not in case.scene.cells and case.scene.caption for case in cases)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["digit_at", "colour_at"]}, r"colour_at.*choose among digit_at, color_at"),
        ({"kinds": []}, "choose among"),
        ({"kinds": {"count": 0.0}}, "positive sum"),
        ({"kinds": {"count": float("nan")}}, "positive sum"),
        ({"pool": "training"}, "unknown pool 'training'.*model, probe, calibration, test"),
        ({"seed": -1}, "must not be negative"),
        ({"kinds": ["count"], "style": SceneStyle(cover_share=1.0, fill=(1.0, 1.0))}, "no scene of this style allows a 'count'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(CaseError, match=message):
        list(WORLD.cases(1, **{"seed": 0, "pool": "test", **arguments}))


def test_an_unknown_world_lists_the_known():
    with pytest.raises(CaseError, match=r"unknown world 'mnist'.*digits"):
        get_world("mnist")
