"""Tokens as clients read them, on the embedded model's tokenizer with its bytes and word pieces."""

from __future__ import annotations

import numpy as np
import pytest

from introspect.types import EffectiveBudget, LogitStats, PromptInfo, StepTrace
from introspect_service.pieces import Pieces

PROMPT = PromptInfo(
    request_id="r", question="", token_ids=np.arange(2), segments=np.zeros(2, np.uint8), image_embedding=None, image_grids=(),
    budget=EffectiveBudget("full", 2, 2, 2), logical=np.zeros(6, np.int32), retention=np.zeros((1, 1, 6), np.float32),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(backend):
    return backend.model.tokenizer


def steps(tokenizer, ids, candidates=()):
    """Steps as the engine makes them: text comes when its bytes are complete."""
    before = ""
    for index in range(len(ids)):
        text = tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
        text = before if text.endswith("\ufffd") else text
        top = (ids[index], *candidates)
        logits = LogitStats(-0.5, 1.0, 0.5, top, (-0.5, -1.0, -float("inf"))[: len(top)])
        yield StepTrace(PROMPT, index, index, ids[index], text[len(before) :], False, logits, None)
        before = text


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_texts_and_bytes_join_to_the_answer(tokenizer):
    ids = ids_of(tokenizer, "red 7 , at row 2")
    pieces = Pieces(tokenizer, 0)
    entries = [pieces.add(step) for step in steps(tokenizer, ids)]
    assert "".join(entry.token for entry in entries) == "red 7, at row 2"
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "red 7, at row 2"


def test_a_part_of_a_character_is_a_byte(tokenizer):
    ids = ids_of(tokenizer, "é")
    pieces = Pieces(tokenizer, 1)
    entries = [pieces.add(step) for step in steps(tokenizer, ids)]
    whole = [entry for entry in entries if entry.bytes]
    assert bytes(byte for entry in whole for byte in entry.bytes).decode().strip() == "é"
    assert [entry.token for entry in whole if entry.bytes == [0xC3]] == ["bytes:\\xc3"]
    assert whole[-1].token.strip() == "é"


def test_candidates_read_as_they_would_stand_in_the_answer(tokenizer):
    red, row = ids_of(tokenizer, "red")[0], ids_of(tokenizer, "row")[0]
    pieces = Pieces(tokenizer, 3)
    first, second = [pieces.add(step) for step in steps(tokenizer, [red, red], candidates=(row, tokenizer.eos_token_id))]
    assert [top.token for top in first.top_logprobs] == ["red", "row", "</s>"]
    assert [top.token for top in second.top_logprobs] == [" red", " row", "</s>"]
    # An impossible token is -9999.0, as with OpenAI: JSON has no infinity.
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -1.0, -9999.0]
    assert bytes(second.top_logprobs[1].bytes) == b" row"


def test_no_candidates_unless_asked_for(tokenizer):
    (entry,) = [Pieces(tokenizer, 0).add(step) for step in steps(tokenizer, ids_of(tokenizer, "red"))]
    assert entry.top_logprobs == []
