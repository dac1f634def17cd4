"""Edits change what they say they change, and nothing else."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from introspect_probes.errors import CaseError
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.claims import judge
from introspect_probes.worlds.digits import pool_of
from introspect_probes.worlds.edits import CHANGES, blank, edit_context, edit_distractors, edit_evidence, grey
from introspect_probes.worlds.questions import PICTURE_KINDS
from introspect_probes.worlds.scene import CELL_PIXELS, PHOTOGRAPHERS
from introspect_probes.worlds.truth import true_answer
from introspect_probes.worlds.world import get_world

CASES = list(get_world("digits").cases(500, seed=21, pool="test"))
PICTURED = [case for case in CASES if case.kind in PICTURE_KINDS]


def rng():
    return np.random.default_rng(4)


def changed_cells(before, after):
    """Cells (reading order) whose pixels differ."""
    differs = (before.scene.pixels() != after.scene.pixels()).any(axis=2)
    blocks = differs.reshape(3, CELL_PIXELS, 3, CELL_PIXELS).any(axis=(1, 3))
    return set(np.flatnonzero(blocks))


def filled(case, cells):
    return {i for i in cells if case.scene.cells[i] is not None}


@pytest.mark.parametrize("change", CHANGES)
def test_an_evidence_edit_changes_the_pixels_of_the_evidence_alone(change):
    edited_cases = 0
    for case in PICTURED[:150]:
        edited = edit_evidence(case, case.evidence, rng(), "test", change)
        if edited is None:
            continue
        edited_cases += 1
        changed = changed_cells(case, edited)
        if evidence := filled(case, case.evidence):
            assert changed == evidence
        else:
            assert len(changed) == 1
            assert changed <= set(case.evidence)
    assert edited_cases > 100


def test_an_edited_cell_keeps_its_look_and_changes_its_content():
    seen = Counter()
    for case in PICTURED:
        for change in ("digit", "color", "both"):
            edited = edit_evidence(case, case.evidence, rng(), "probe", change)
            for index in filled(case, case.evidence) if edited else ():
                old, new = case.scene.cells[index], edited.scene.cells[index]
                assert replace(new, sample=old.sample, color=old.color, covered=old.covered) == old
                assert not new.covered
                assert (new.digit != old.digit) == (change != "color")
                assert (new.color != old.color) == (change != "digit")
                assert new.sample == old.sample or pool_of(new.sample) == "probe"
                seen[change] += 1
    assert min(seen.values()) > 300


def test_an_edited_case_has_the_answer_that_is_true_of_it():
    edits = Counter()
    for case in PICTURED:
        for edit in (edit_evidence, edit_distractors):
            edited = edit(case, case.evidence, rng(), "test")
            if edited is not None:
                edits[edit] += 1
                truth = true_answer(edited.question, edited.scene, edited.context)
                assert (edited.question, edited.answers) == (case.question, (truth.answer,))
                assert judge(edited, edited.answers[0]).is_correct
    assert min(edits[edit_evidence], edits[edit_distractors]) > 200


def test_an_evidence_edit_changes_the_answer_where_it_can():
    """The digit under a question about the digit, the colour under one about the colour: always."""
    kinds = Counter()
    for case in PICTURED:
        change = {"digit_at": "digit", "color_at": "color", "digit_of": "digit", "color_of": "color"}.get(case.kind)
        if change and case.answers[0] != "none":
            edited = edit_evidence(case, case.evidence, rng(), "test", change)
            assert edited.answers != case.answers
            assert judge(edited, case.answers[0]).has_false_claim
            kinds[case.kind] += 1
    assert set(kinds) == {"digit_at", "color_at", "digit_of", "color_of"}


def test_an_evidence_edit_of_a_row_never_leaves_its_sum():
    """Several digits redrawn at once could add up to the old total."""
    rows = [case for case in PICTURED if case.kind == "sum_row" and len(filled(case, case.evidence)) > 1]
    assert len(rows) > 10
    for case in rows:
        for seed in range(10):
            assert edit_evidence(case, case.evidence, np.random.default_rng(seed), "test", "digit").answers != case.answers


def test_removing_the_evidence_leaves_an_empty_cell():
    case = next(c for c in PICTURED if c.kind == "digit_at" and c.answers[0].isdigit() and c.source == "image")
    assert edit_evidence(case, case.evidence, rng(), "test", "remove").answers == ("none",)


def test_an_empty_evidence_cell_is_filled():
    case = next(c for c in PICTURED if c.kind == "digit_at" and c.answers == ("none",))
    edited = edit_evidence(case, case.evidence, rng(), "test", "digit")
    assert edited.answers == (str(edited.scene.cells[case.evidence[0]].digit),)
    assert edit_evidence(case, case.evidence, rng(), "test", "remove") is None


def test_one_claims_evidence_can_be_edited_in_a_description():
    case = next(c for c in PICTURED if c.kind == "describe" and len(c.scene.visible()) >= 4)
    index = case.scene.visible()[1][0]
    edited = edit_evidence(case, (index,), rng(), "test", "color")
    assert changed_cells(case, edited) == {index}
    claims = [claim for claim in judge(edited, case.answers[0]).claims if claim.is_false]
    assert [(claim.kind, claim.evidence) for claim in claims] == [("color", (index,))]
    others = edit_distractors(case, (index,), rng(), "test", "color")
    assert len(changed_cells(case, others)) == 1
    assert index not in changed_cells(case, others)


@pytest.mark.parametrize("change", CHANGES)
def test_a_distractor_edit_spares_the_evidence_and_the_answer(change):
    edited_cases = 0
    for case in PICTURED[:200]:
        edited = edit_distractors(case, case.evidence, rng(), "test", change)
        if edited is None:
            continue
        edited_cases += 1
        changed = changed_cells(case, edited)
        assert changed
        assert changed.isdisjoint(case.evidence)
        assert changed <= {i for i, _ in case.scene.visible()}
        assert len(changed) <= max(1, len(filled(case, case.evidence)))
        assert edited.answers == case.answers
    assert edited_cases > 80


def test_where_everything_is_evidence_there_are_no_distractors():
    counts = [case for case in PICTURED if case.kind == "count"]
    assert len(counts) > 10
    assert all(edit_distractors(case, case.evidence, rng(), "test") is None for case in counts)


def test_edits_follow_their_generator():
    case = next(c for c in PICTURED if c.kind == "digit_at" and c.answers[0].isdigit())
    first, second = (edit_evidence(case, case.evidence, np.random.default_rng(seed), "test") for seed in (1, 2))
    assert first == edit_evidence(case, case.evidence, np.random.default_rng(1), "test")
    assert first.scene != second.scene
    assert len({first.id, second.id, case.id}) == 3


def test_twins_share_group_and_start_of_the_id():
    for case in CASES[:200]:
        twins = [edit_context(case, rng()), blank(case), grey(case)]
        twins += [edit(case, case.evidence, rng(), "test") for edit in (edit_evidence, edit_distractors)]
        for twin in filter(None, twins):
            assert twin.group == case.group
            assert twin.question == case.question
            assert twin.id.startswith(f"{case.id}-")


def test_an_edited_note_states_the_new_answer():
    noted = [case for case in CASES if case.source == "context"]
    assert {case.kind for case in noted} >= {"fact", "digit_at"}
    for case in noted:
        edited = edit_context(case, rng())
        assert edited.answers != case.answers
        assert edited.context[:-1] == case.context[:-1]
        assert edited.context[-1] == case.context[-1].replace(f" {case.answers[0]} .", f" {edited.answers[0]} .")
        assert edited.scene == case.scene


def test_an_edited_caption_names_another_photographer_and_no_other_truth():
    captioned = [c for c in PICTURED if c.scene.caption and c.source == "image"]
    for case in captioned:
        edited = edit_context(case, rng())
        assert edited.context == (f"photo by {edited.scene.caption} .",) != case.context
        assert edited.answers == case.answers
        assert (edited.scene.pixels() == case.scene.pixels()).all()
        if edited.prior != "none":
            favourite = PHOTOGRAPHERS[edited.scene.caption]
            digit = edited.scene.cells[edited.evidence[0]].digit
            assert edited.prior == ("text-with" if favourite == digit else "text-against")
    assert len(captioned) > 50


def test_a_case_without_context_has_none_to_edit():
    without = [case for case in CASES if not case.context]
    assert len(without) > 100
    assert all(edit_context(case, rng()) is None for case in without)


def test_a_fact_stays_what_it_is_whatever_the_picture_shows():
    facts = [c for c in CASES if c.kind == "fact" and c.scene]
    assert len(facts) > 50
    for case in facts:
        for twin in (blank(case), edit_evidence(case, (0, 1), rng(), "test")):
            assert (twin.answers, twin.source) == (case.answers, case.source)


def test_a_blank_scene_holds_noise_alone():
    for case in PICTURED[:60]:
        empty = blank(case)
        assert changed_cells(case, empty) == filled(case, range(9))
        assert not empty.scene.visible()
    answers = {c.kind: blank(c).answers for c in PICTURED if c.source == "image"}
    assert answers["count"] == ("0",)
    assert answers["describe"] == ("nothing",)
    assert answers["exists"] == ("no",)
    assert answers["add_row"] == ("none",)


def test_a_grey_picture_is_grey_and_of_the_same_size():
    case = PICTURED[0]
    picture = grey(case).picture()
    assert picture.size == case.picture().size
    assert picture.getextrema() == ((128, 128),) * 3


def test_without_a_scene_there_is_no_picture_to_edit():
    case = Case("x", "question", "what ?", ("this",), "g")
    assert [blank(case), grey(case), edit_context(case, rng())] == [None] * 3
    assert edit_evidence(case, (0,), rng(), "test") is None
    assert edit_distractors(case, (0,), rng(), "test") is None


@pytest.mark.parametrize("edit", [edit_evidence, edit_distractors])
def test_wrong_arguments_are_named(edit):
    with pytest.raises(CaseError, match=r"cells must be in 0\.\.8, got \[9\]"):
        edit(PICTURED[0], (9,), rng(), "test")
    with pytest.raises(CaseError, match="change must be one of digit, color, both, remove, got 'size'"):
        edit(PICTURED[0], (0,), rng(), "test", "size")
