"""Claims: what an answer says, judged word by word."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from introspect_probes.embedded.tokenizer import build_tokenizer, world_words
from introspect_probes.matching import normalise
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.claims import CLAIM_KINDS, claims_in_answer_tokens, judge
from introspect_probes.worlds.digits import pool_by_digit
from introspect_probes.worlds.questions import ASKERS
from introspect_probes.worlds.scene import Cell, Scene
from introspect_probes.worlds.truth import true_answer
from introspect_probes.worlds.world import get_world

CASES = list(get_world("digits").cases(2000, seed=11, pool="test"))


def cell(color, digit, covered=False):
    return Cell(pool_by_digit("test")[digit][0], color, covered=covered)


# red 7 | -        | blue 3
# -     | (hidden) | -
# black 0 | red 4  | -
SCENE = Scene(
    3, 3, (cell("red", 7), None, cell("blue", 3), None, cell("green", 9, True), None, cell("black", 0), cell("red", 4), None), 0.0, 0
)
OPEN = SCENE.with_cell(4, None)
EMPTY = replace(SCENE, cells=(None,) * 9)


def case_of(kind, question, scene=OPEN):
    truth = true_answer(question, scene)
    return Case("c", kind, question, (truth.answer,), "g", scene=scene, evidence=truth.evidence)


DESCRIBE = case_of("describe", "describe everything", SCENE)
WHERE = case_of("where", "where is the blue 3 ?")
ADD = case_of("add_row", "add up row 3")
ALL_KINDS = [
    case_of("digit_at", "what digit is at row 1 column 1 ?"),
    case_of("color_at", "what color is at row 1 column 1 ?"),
    case_of("color_of", "what color is the 7 ?"),
    case_of("digit_of", "what digit is blue ?"),
    case_of("exists", "is there a 7 ?"),
    case_of("count", "how many red ?"),
    case_of("sum_row", "what is the sum of row 3 ?"),
    case_of("where", "where is the green 1 ?"),
    case_of("describe", "describe everything", EMPTY),
    Case("f", "fact", "where does bazu live ?", ("rome",), "g", source="memory"),
    Case("u", "question", "Where is it?", ("In Rome.", "rome"), "g"),
    Case("s", "question", "Describe.", ("A cat on a mat.",), "g", spans=((2, 5), (11, 14))),
    WHERE,
    ADD,
    DESCRIBE,
]


def said(case, text):
    """What a judgement holds, in short: correct, then (kind, word, verdict)."""
    judgement = judge(case, text)
    return judgement.is_correct, [(c.kind, c.text, not c.is_false) for c in judgement.claims]


def evidence(case, text):
    return [c.evidence for c in judge(case, text).claims]


@pytest.mark.parametrize(
    ("kind", "question", "text", "expected"),
    [
        ("digit_at", "what digit is at row 1 column 1 ?", "7", (True, [("digit", "7", True)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "1", (False, [("digit", "1", False)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "none", (False, [("digit", "none", False)])),
        ("digit_at", "what digit is at row 1 column 2 ?", "none", (True, [("digit", "none", True)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "red", (False, [("digit", "red", False)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "7 7", (False, [("digit", "7", True)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "77", (False, [("digit", "77", False)])),
        ("digit_at", "what digit is at row 1 column 1 ?", "banana", (False, [])),
        # Not these words but longer ones.
        ("digit_at", "what digit is at row 1 column 1 ?", "7th", (False, [])),
        ("digit_at", "what digit is at row 1 column 1 ?", "7777", (False, [])),
        ("digit_at", "what digit is at row 1 column 1 ?", "nonetheless", (False, [])),
        ("color_at", "what color is at row 1 column 3 ?", "Blue.", (True, [("color", "Blue", True)])),
        ("color_at", "what color is at row 1 column 3 ?", "hidden", (False, [("color", "hidden", False)])),
        ("color_of", "what color is the 7 ?", "blue", (False, [("color", "blue", False)])),
        ("digit_of", "what digit is blue ?", "3", (True, [("digit", "3", True)])),
        ("exists", "is there a 7 ?", "yes", (True, [("existence", "yes", True)])),
        ("exists", "is there a 8 ?", "yes", (False, [("existence", "yes", False)])),
        ("count", "how many red ?", "2", (True, [("count", "2", True)])),
        ("count", "how many red ?", "3", (False, [("count", "3", False)])),
        ("sum_row", "what is the sum of row 1 ?", "10", (True, [("sum", "10", True)])),
        ("sum_row", "what is the sum of row 1 ?", "1", (False, [("sum", "1", False)])),
    ],
)
def test_one_word_answers(kind, question, text, expected):
    assert said(case_of(kind, question), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("row 1 column 3", (True, [("place", "1", True), ("place", "3", True)])),
        ("row 2 column 3", (False, [("place", "2", False), ("place", "3", True)])),
        ("row 1 column 1", (False, [("place", "1", True), ("place", "1", False)])),
        ("row 1", (False, [("place", "1", True)])),
        ("nowhere", (False, [("place", "nowhere", False)])),
        ("column 3", (False, [])),
        ("row 1000 column 3", (False, [])),
        ("row 1 column 3rd", (False, [("place", "1", True)])),
        ("row 1 column 33", (False, [("place", "1", True), ("place", "33", False)])),
    ],
)
def test_where(text, expected):
    assert said(WHERE, text) == expected


def test_nowhere_is_true_of_what_is_not_there():
    case = case_of("where", "where is the green 1 ?")
    assert said(case, "nowhere") == (True, [("place", "nowhere", True)])
    assert said(case, "row 1 column 1") == (False, [("place", "1", False), ("place", "1", False)])


@pytest.mark.parametrize(
    ("text", "is_correct", "verdicts"),
    [
        # As the tokenizer decodes it, without the space before the comma; in another order; in other letters.
        (
            "row 1 column 1 red 7, row 1 column 3 blue 3, row 2 column 2 hidden, row 3 column 1 black 0, row 3 column 2 red 4",
            True,
            "111 111 11 111 111",
        ),
        (
            "row 3 column 2 red 4 , row 1 column 3 blue 3 , row 2 column 2 hidden , row 3 column 1 black 0 , ROW 1 column 1 Red 7 .",
            True,
            "111 111 11 111 111",
        ),
        # Incomplete, but nothing in it is false.
        ("row 1 column 1 red 7, row 1 column 3 blue 3", False, "111 111"),
        # A wrong colour, a wrong digit.
        ("row 1 column 1 blue 7, row 1 column 3 blue 8", False, "101 110"),
        # An empty place: whatever is said of it is false. A place off the grid, likewise.
        ("row 1 column 2 red 7, row 9 column 9 red 7", False, "000 000"),
        # The same place again; what is said of it is still judged.
        ("row 1 column 1 red 7, row 1 column 1 red 8", False, "111 010"),
        # A covered cell must be called hidden; an open one must not.
        ("row 2 column 2 green 9, row 1 column 1 hidden", False, "100 10"),
        # Cut short, or running on into something else.
        ("row 1 column 1 red", False, "11"),
        ("row 1 column 1", False, "1"),
        ("row 1", False, ""),
        ("row 1 column 1 red 7 row 1 column 3 blue 3", False, "111"),
        ("a cat, row 1 column 1 banana 7, , row 1 column 3 blue 3", False, "1 111"),
        ("nothing", False, "0"),
        ("", False, ""),
    ],
)
def test_descriptions(text, is_correct, verdicts):
    judgement = judge(DESCRIBE, text)
    assert judgement.is_correct == is_correct
    assert "".join(str(int(not c.is_false)) for c in judgement.claims) == verdicts.replace(" ", "")


def test_a_description_with_one_object_missing_or_repeated_is_not_correct():
    parts = DESCRIBE.answers[0].split(" , ")
    for left_out in range(len(parts)):
        assert not judge(DESCRIBE, " , ".join(parts[:left_out] + parts[left_out + 1 :])).is_correct
    assert not judge(DESCRIBE, " , ".join([*parts, parts[0]])).is_correct
    assert not judge(DESCRIBE, " , ".join([*parts, "a cat"])).is_correct
    assert not judge(DESCRIBE, " , ".join([*parts, "nothing"])).is_correct


def test_a_description_cut_short_or_with_a_foreign_word_is_not_correct():
    words = DESCRIBE.answers[0].split()
    for i in range(len(words)):
        assert not judge(DESCRIBE, " ".join(words[:i])).is_correct
        assert not judge(DESCRIBE, " ".join([*words[: i + 1], "cat", *words[i + 1 :]])).is_correct


def test_claims_of_a_description_know_kind_and_evidence():
    text = "row 1 column 3 blue 3, row 2 column 2 hidden, row 9 column 9 red 1"
    assert [c.kind for c in judge(DESCRIBE, text).claims] == ["place", "color", "digit", "place", "none", "place", "color", "digit"]
    assert evidence(DESCRIBE, text) == [(2,)] * 3 + [(4,)] * 2 + [()] * 3


def test_nothing_is_true_of_an_empty_scene():
    case = case_of("describe", "describe everything", EMPTY)
    assert said(case, "nothing") == (True, [("none", "nothing", True)])
    assert said(case, "row 1 column 1 red 7") == (False, [("place", "1", False), ("color", "red", False), ("digit", "7", False)])
    assert not judge(case, "nothing, nothing").is_correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 plus 4 is 4", (True, [("digit", "0", True), ("digit", "4", True), ("sum", "4", True)])),
        ("0 plus 9 is 9", (False, [("digit", "0", True), ("digit", "9", False), ("sum", "9", False)])),
        ("4 plus 0 is 4", (False, [("digit", "4", False), ("digit", "0", False), ("sum", "4", True)])),
        ("0 plus 4 plus 2 is 6", (False, [("digit", "0", True), ("digit", "4", True), ("digit", "2", False), ("sum", "6", False)])),
        ("0 plus", (False, [("digit", "0", True)])),
        ("0", (False, [("digit", "0", True)])),
        ("is 4", (False, [])),
        ("0 plus 4 is", (False, [("digit", "0", True), ("digit", "4", True)])),
    ],
)
def test_add_row(text, expected):
    assert said(ADD, text) == expected


def test_each_addend_points_at_its_cell():
    assert evidence(ADD, "0 plus 4 plus 2 is 4") == [(6,), (7,), (), (6, 7)]


def test_a_fact_is_one_claim_with_no_cell():
    case = Case("f", "fact", "where does bazu live ?", ("rome",), "g", source="memory", scene=OPEN)
    assert said(case, "rome") == (True, [("fact", "rome", True)])
    assert said(case, "tea") == (False, [("fact", "tea", False)])
    assert evidence(case, "oslo") == [()]


def test_a_users_own_case_is_matched_as_a_whole():
    case = Case("u", "question", "Where is it?", ("In Rome , Italy .", "rome"), "g")
    assert said(case, "in rome, italy") == (True, [])
    assert said(case, "  ROME ") == (True, [])
    assert said(case, "in rome") == (False, [])


def test_marked_spans_are_the_claims_of_the_marked_answer():
    case = Case("s", "question", "Describe.", ("A cat on a mat.", "A dog."), "g", spans=((11, 14), (2, 5)))
    words = [("A", True), ("cat", False), ("on", True), ("a", True), ("mat", False)]
    assert said(case, "A cat on a mat.") == (False, [("span", word, truth) for word, truth in words])
    assert said(case, "A dog.") == (True, [])
    assert said(replace(case, spans=()), "A cat on a mat.") == (True, [("span", word, True) for word, _ in words])


@pytest.mark.parametrize(("text", "normal"), [(" Row 1 ,row 2 . ", "row 1, row 2"), ("a  b\n", "a b"), ("3 .", "3"), ("", "")])
def test_normalise(text, normal):
    assert normalise(text) == normal


def test_the_right_answer_of_every_case_is_right_in_every_claim():
    kinds = set()
    for case in CASES:
        text = case.answers[0].replace(" ,", ",")
        judgement = judge(case, text)
        assert judgement.is_correct, case
        assert judgement.claims, case
        assert not judgement.has_false_claim, case
        kinds |= {claim.kind for claim in judgement.claims}
    assert kinds == set(CLAIM_KINDS) - {"span"}


def test_the_answer_of_another_scene_is_right_only_where_it_is_the_same():
    for case, other in zip(CASES, CASES[1:] + CASES[:1], strict=True):
        assert judge(case, other.answers[0]).is_correct == (case.answers == other.answers)


def test_one_wrong_word_makes_one_false_claim():
    """In a description, each colour and digit changed alone; the place stays true."""
    described = [c for c in CASES if c.kind == "describe" and c.answers[0] != "nothing" and "hidden" not in c.answers[0]]
    assert len(described) > 50
    for case in described:
        words = case.answers[0].split()
        # Seven words to an object: row 1 column 1 red 7 ,
        for i in range(len(words)):
            if i % 7 not in (4, 5):
                continue
            wrong = str((int(words[i]) + 1) % 10) if i % 7 == 5 else "red" if words[i] != "red" else "blue"
            judgement = judge(case, " ".join([*words[:i], wrong, *words[i + 1 :]]))
            assert [(c.kind, c.text) for c in judgement.claims if c.is_false] == [("color" if i % 7 == 4 else "digit", wrong)]
            assert not judgement.is_correct


WORDS = st.lists(st.sampled_from([*world_words(), "9" * 5000, "\u0663", "\u017f", "\u212a", "\u0130", "\x00", "1.5"]), max_size=30).map(
    " ".join
)
GRAMMAR = st.lists(
    st.builds(
        "row {} column {} {} {}".format,
        st.integers(-1, 12),
        st.integers(0, 4),
        st.sampled_from(["red", "blue", "hidden"]),
        st.integers(0, 10),
    ),
    max_size=6,
).map(" , ".join)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.one_of(st.text(), WORDS, GRAMMAR, st.sampled_from([c.answers[0] for c in ALL_KINDS])))
def test_no_text_can_break_the_judge(text):
    for case in ALL_KINDS:
        judgement = judge(case, text)
        assert [claim.slot for claim in judgement.claims] == list(range(len(judgement.claims)))
        assert all(text[claim.start : claim.end] == claim.text != "" for claim in judgement.claims)
        assert all(a.end <= b.start for a, b in zip(judgement.claims, judgement.claims[1:], strict=False))
        assert {claim.kind for claim in judgement.claims} <= set(CLAIM_KINDS)
        assert not (judgement.is_correct and judgement.has_false_claim)


def test_every_asker_is_judged():
    assert {case.kind for case in ALL_KINDS} >= {kind for kind in ASKERS if not kind.startswith("fact_")}


@pytest.mark.parametrize("case", ALL_KINDS[:10] + ALL_KINDS[-3:], ids=lambda case: case.kind)
def test_the_deciding_token_is_the_claims_word(case):
    tokenizer = build_tokenizer()
    ids = tokenizer(case.answers[0], add_special_tokens=False).input_ids
    text = tokenizer.decode(ids)
    # Spans as a client sees them: each token's text is what it adds to the text so far.
    ends = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    spans = list(zip([0, *ends], ends, strict=False))
    judgement = judge(case, text)
    assert judgement.is_correct
    located = claims_in_answer_tokens(judgement, spans)
    assert [claim for _, claim in located] == list(judgement.claims)
    assert [tokenizer.decode([ids[i]]) for i, _ in located] == [claim.text for claim in judgement.claims]


def test_tokens_by_the_tokenizers_own_offsets():
    tokenizer = build_tokenizer()
    encoded = tokenizer("row 1 column 1 red 7, row 2 column 2 hidden", add_special_tokens=False, return_offsets_mapping=True)
    located = claims_in_answer_tokens(judge(DESCRIBE, "row 1 column 1 red 7, row 2 column 2 hidden"), encoded.offset_mapping)
    assert [i for i, _ in located] == [3, 4, 5, 10, 11]


def test_a_claim_split_into_several_tokens_is_decided_by_the_first():
    judgement = judge(case_of("sum_row", "what is the sum of row 1 ?"), "10")
    assert [i for i, _ in claims_in_answer_tokens(judgement, [(0, 1), (1, 2)])] == [0]
    assert claims_in_answer_tokens(judgement, []) == []
