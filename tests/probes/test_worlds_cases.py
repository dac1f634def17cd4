"""`cases.jsonl`: what is written is read, and what is wrong is named."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from introspect_probes.errors import CaseError
from introspect_probes.worlds.cases import Case, read_cases, write_cases
from introspect_probes.worlds.claims import judge
from introspect_probes.worlds.world import get_world


def png(color=(10, 20, 30)):
    data = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(data, "PNG")
    return data.getvalue()


def write_lines(folder, *records):
    path = folder / "cases.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


GOOD = {"id": "a", "question": "what ?", "answer": "this"}


def test_a_round_trip_keeps_what_the_format_holds(tmp_path):
    cases = list(get_world("digits").cases(60, seed=3, pool="probe"))
    assert write_cases(cases, tmp_path / "cases.jsonl") == 60
    for before, after in zip(cases, read_cases(tmp_path / "cases.jsonl"), strict=True):
        for name in ("id", "kind", "question", "answers", "group", "context", "pool", "spans"):
            assert getattr(after, name) == getattr(before, name)
        if before.scene is None:
            assert after.picture() is None
        else:
            assert np.array_equal(np.asarray(after.picture()), before.scene.pixels())


def test_a_case_read_back_is_judged_alike(tmp_path):
    cases = list(get_world("digits").cases(80, seed=4, pool="probe"))
    write_cases(cases, tmp_path / "cases.jsonl")
    for i, (before, after) in enumerate(zip(cases, read_cases(tmp_path / "cases.jsonl"), strict=True)):
        for text in (before.answers[0], cases[i - 1].answers[0]):
            one, two = judge(before, text), judge(after, text)
            assert one.is_correct == two.is_correct
            assert [(c.start, c.kind, c.is_false) for c in one.claims] == [(c.start, c.kind, c.is_false) for c in two.claims]


def test_spans_and_several_answers_survive(tmp_path):
    case = Case("s", "question", "what ?", ("a cat", "cat"), "g", spans=((2, 5),))
    write_cases([case], tmp_path / "cases.jsonl")
    assert list(read_cases(tmp_path / "cases.jsonl")) == [case]


def test_the_shortest_line_gets_its_defaults(tmp_path):
    (case,) = read_cases(write_lines(tmp_path, GOOD, ""))
    assert (case.answers, case.group, case.context, case.kind, case.image) == (("this",), "a", (), "question", None)


def test_context_may_be_one_passage_or_several(tmp_path):
    one, two = read_cases(write_lines(tmp_path, {**GOOD, "context": "x"}, {**GOOD, "id": "b", "context": ["x", "y"]}))
    assert (one.context, two.context) == (("x",), ("x", "y"))


@pytest.mark.parametrize("header", ["data:image/png;base64,", "DATA:image/png;BASE64,"])
def test_a_data_uri_is_an_image(tmp_path, header):
    (case,) = read_cases(write_lines(tmp_path, {**GOOD, "image": header + base64.b64encode(png()).decode()}))
    assert case.picture().size == (4, 3)
    assert case.picture().getpixel((0, 0)) == (10, 20, 30)


def test_an_image_may_lie_in_a_folder_below(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(png())
    (case,) = read_cases(write_lines(tmp_path, {**GOOD, "image": "images/../images/x.png"}))
    assert case.picture().size == (4, 3)


def test_an_image_outside_the_folder_is_refused(tmp_path):
    inside = tmp_path / "set"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for reference in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(CaseError, match=r"cases\.jsonl line 1: the image .*(secret|link)\.png lies outside the folder"):
            list(read_cases(write_lines(inside, {**GOOD, "image": reference})))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "Invalid JSON"),
        ({**GOOD, "id": "b", "colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"id": "b", "answer": "x"}, "question: Field required"),
        ({"id": "b", "question": "what ?"}, "a case needs `answer` or `answers`"),
        ({"id": "b", "question": "what ?", "answers": []}, "answers: List should have at least 1 item"),
        (GOOD, "the id 'a' occurs twice"),
        ({**GOOD, "id": "b", "spans": [[2, 9]]}, r"a span must lie in the answer's 4 characters, got \[2, 9\]"),
        ({**GOOD, "id": "b", "image": "missing.png"}, "the image missing.png cannot be opened"),
        ({**GOOD, "id": "b", "image": "cases.jsonl"}, "the image cases.jsonl cannot be opened"),
        ({**GOOD, "id": "b", "image": "data:image/png,abc"}, "a data: URI must be base64"),
        ({**GOOD, "id": "b", "image": "data:image/png;base64,a?c"}, "line 2: "),
        ({**GOOD, "id": "b", "image": "data:image/png;base64," + base64.b64encode(png()[:40]).decode()}, "cannot be opened"),
        ({**GOOD, "id": "b", "image": "a\x00b"}, "line 2: "),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path, GOOD, line)
    cases = read_cases(path)
    assert next(cases).id == "a"
    with pytest.raises(CaseError, match=message) as caught:
        next(cases)
    assert str(caught.value).startswith("cases.jsonl line 2: ")


def test_bytes_that_are_no_text_name_their_line_and_a_mark_at_the_start_is_skipped(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    cases = read_cases(path)
    assert next(cases).id == "a"
    with pytest.raises(CaseError, match=r"cases\.jsonl line 2: "):
        next(cases)


def test_a_missing_file_is_a_case_error(tmp_path):
    with pytest.raises(CaseError, match="cannot read the cases"):
        next(read_cases(tmp_path / "none.jsonl"))


def test_foreign_ids_write_no_file_elsewhere(tmp_path):
    image = Image.new("RGB", (2, 2))
    cases = [Case(name, "question", "q", ("a",), "g", image=image) for name in ("../../x", ".hidden", "ok", "a b/c")]
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    write_cases(cases, folder / "cases.jsonl")
    assert [case.id for case in read_cases(folder / "cases.jsonl")] == [case.id for case in cases]
    assert len(list(folder.glob("cases-images/*.png"))) == len(list(tmp_path.rglob("*.png"))) == 4


def test_one_id_is_not_written_twice(tmp_path):
    case = Case("a", "question", "q", ("a",), "g")
    with pytest.raises(CaseError, match="the id 'a' occurs twice"):
        write_cases([case, case], tmp_path / "cases.jsonl")
