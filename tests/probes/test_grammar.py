"""The grammar knows every question of the world and finds the claims that the judge finds."""

from __future__ import annotations

from introspect_probes.grammar import find_claims, question_form
from introspect_probes.worlds.claims import judge
from introspect_probes.worlds.outside import outside_cases
from introspect_probes.worlds.world import get_world


def test_every_question_of_the_world_is_known_and_its_claims_are_found() -> None:
    for case in get_world("digits").cases(400, seed=8, pool="model"):
        form = question_form(case.question)
        assert form is not None, case.question
        assert form.kind == case.kind
        expected = [(c.start, c.end, c.kind) for c in judge(case, case.answers[0]).claims]
        assert [(c.start, c.end, c.kind) for c in find_claims(form, case.answers[0])] == expected


def test_other_questions_have_no_claims() -> None:
    strange = [c.question for c in outside_cases(60, seed=1, part="test", pool="model") if c.question.startswith(("who", "how does"))]
    assert strange
    for question in strange:
        form = question_form(question)
        assert form is None
        assert find_claims(form, "red 7") == ()
