"""What is rendered is drawn by its font and written by its tokenizer; nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import UNK, build_tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from introspect.errors import HeadScoresError
from introspect.heads.rendered import rendered_cases
from introspect.heads.scripts import WORDS, draws, machine_fonts, typefaces

MATPLOTLIB = {"latin", "greek", "cyrillic", "armenian", "georgian"}
"""Scripts of DejaVu, which comes with matplotlib."""


def named(stem: str) -> str:
    return next(path for path in machine_fonts() if Path(path).stem == stem)


def test_every_script_that_the_fonts_draw_is_there() -> None:
    faces = typefaces(build_tiny_tokenizer())
    assert {face.script for face in faces} >= MATPLOTLIB
    assert all(set(face.words) <= set(WORDS[face.script].split()) for face in faces)
    own = [face for face in faces if face.font is None]
    assert {face.script for face in own} == {"latin"}
    assert not {"rzeka", "źródło"} <= set(own[0].words)  # Pillow's own font has no ź


@pytest.mark.parametrize(("letter", "expected"), [("ж", True), ("ქ", True), ("桥", False), ("\U0010ffff", False), ("a", True)])
def test_a_font_draws_what_it_has_a_sign_for(letter: str, expected: bool) -> None:
    assert draws(named("DejaVuSans"), letter) is expected


def test_a_tokenizer_that_loses_letters_rules_words_and_scripts_out() -> None:
    known = ("river", "window", "green", "market", "река")
    vocabulary = {UNK: 0} | {word: number for number, word in enumerate(known, 1)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=UNK)), unk_token=UNK)
    assert {face.words for face in typefaces(tokenizer)} == {known[:4]}  # one Russian word is too few to draw from
    with pytest.raises(HeadScoresError, match="tokenizer cannot write, or no font draws, words in greek"):
        typefaces(tokenizer, scripts=["latin", "greek"])


def test_fonts_of_ones_own(tmp_path: Path) -> None:
    font = named("DejaVuSerif")
    assert {(face.font, face.script) for face in typefaces(fonts=[font], scripts=["georgian", "latin"])} == {
        (font, "georgian"),
        (font, "latin"),
    }
    (tmp_path / "no.ttf").write_text("no font", encoding="utf-8")
    with pytest.raises(HeadScoresError, match=r"cannot read the font .*no\.ttf"):
        typefaces(fonts=[tmp_path / "no.ttf"])
    with pytest.raises(HeadScoresError, match="no font draws, words in han"):
        typefaces(fonts=[font], scripts=["latin", "han"])
    with pytest.raises(HeadScoresError, match=r"unknown scripts \['runes'\]; there are latin"):
        typefaces(scripts=["runes"])


def test_pictures_take_turns_in_scripts_and_hold_their_ink_in_their_boxes() -> None:
    tokenizer = build_tiny_tokenizer()
    faces, seen = typefaces(tokenizer, fonts=[named("DejaVuSans"), named("DejaVuSerif")]), set()
    for one in rendered_cases(24, seed=1, faces=faces):
        words = {word for word in one.answer.split() if not word.isdigit()}
        scripts = {script for script, known in WORDS.items() if words & set(known.split())}
        assert len(scripts) <= 1  # one picture, one script
        seen |= scripts
        assert tokenizer.decode(tokenizer(one.answer, add_special_tokens=False).input_ids) == one.answer
        pixels = np.asarray(one.image.convert("L"), dtype=int)
        ink = np.abs(pixels - np.bincount(pixels.ravel()).argmax()) > 20
        for piece in one.evidence:
            left, top, right, bottom = (round(v) for v in piece.boxes[0])
            assert ink[top:bottom, left:right].any()
            ink[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not ink.any()
    assert seen >= MATPLOTLIB
