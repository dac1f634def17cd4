"""The sample pictures in the repository are what the code that names them draws."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from introspect_probes.errors import CaseError
from introspect_probes.worlds.digits import pool_of
from introspect_probes.worlds.samples import Sample, page, photo, samples, truths, write_samples
from introspect_probes.worlds.scene import CELL_PIXELS

FOLDER = Path(__file__).parents[2] / "samples"


def test_the_kept_pictures_are_the_scenes():
    assert [sample.name for sample in samples()] == [f"scene-{i}.png" for i in (1, 2, 3, 4)]
    for sample in samples():
        kept = np.asarray(Image.open(FOLDER / sample.name))
        assert kept.shape == (3 * CELL_PIXELS, 3 * CELL_PIXELS, 3)
        # Another release of Pillow may round a rotated pixel otherwise.
        assert np.abs(kept.astype(int) - sample.scene.pixels()).max() <= 2


def test_the_kept_page_is_up_to_date():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page()


def test_the_photograph_is_kept_and_credited():
    with Image.open(FOLDER / "photo-flower.jpg") as kept:
        assert kept.size == photo().size
        assert np.abs(np.asarray(kept).astype(int) - np.asarray(photo())).mean() < 6
    assert "creativecommons.org/licenses/by/2.0" in page()


def test_samples_are_of_the_test_pool_and_their_questions_have_answers():
    for sample in samples():
        assert {pool_of(cell.sample) for cell in sample.scene.cells if cell is not None} == {"test"}
        assert len(truths(sample)) == len(sample.questions)
    answers = {(sample.name, context, question): answer for sample in samples() for context, question, answer in truths(sample)}
    assert answers["scene-1.png", (), "what digit is at row 2 column 3 ?"] == "2"
    assert answers["scene-2.png", (), "what color is at row 2 column 2 ?"] == "red"
    assert answers["scene-4.png", ("photo by anna .",), "what digit is at row 1 column 3 ?"] == "hidden"
    assert answers["scene-4.png", ("photo by anna .", "the digit at row 1 column 3 is 6 ."), "what digit is at row 1 column 3 ?"] == "6"


def test_a_question_without_a_unique_answer_is_refused():
    with pytest.raises(CaseError, match="no unique answer"):
        truths(Sample("x.png", "", samples()[1].scene, ("what color is the 7 ?",)))


def test_writing_makes_every_file(tmp_path):
    write_samples(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in FOLDER.iterdir())
