"""From a request to the model's own inputs: chat template, several pictures, and where every token came from."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eager_reference import attention_of
from families import FAMILIES, WITH_PROCESSOR
from tiny_model import picture
from tiny_tokenizer import IMAGE, VISION_START, build_tiny_tokenizer

from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.loading import LoadedModel, load_model
from introspect.outline import facts_of, load_outline
from introspect.prompt import EncodedPrompt, character_segments, encode, token_segments
from introspect.types import ImagePart, Message, Request, SamplingParams, TextPart
from introspect_kernels import Segment

TURNS = (
    Message("user", (ImagePart(picture(1, 60, 40)), TextPart("what is here ?\n"))),
    Message("assistant", (TextPart("a nine"),)),
    Message("user", (TextPart("a note .", is_context=True), ImagePart(picture(2, 44, 84)), TextPart("is it the same ?"))),
)
REQUEST = Request("r", TURNS, SamplingParams(max_tokens=6))


@pytest.fixture(scope="module", params=WITH_PROCESSOR)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model as its files give it."""
    torch.manual_seed(0)
    loaded, folder = FAMILIES[request.param]().loaded, tmp_path_factory.mktemp(request.param)
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return load_model(str(folder))


def text_of(loaded: Any, prompt: EncodedPrompt, segment: Segment) -> str:
    """The text of a segment's tokens; spaces as the tokenizer makes them."""
    text: str = loaded.tokenizer.decode(prompt.token_ids[prompt.segments == int(segment)])
    return text


def test_every_token_of_two_pictures_and_two_turns_has_its_origin(stored: LoadedModel) -> None:
    prompt = encode(stored, REQUEST)
    image = prompt.segments == int(Segment.IMAGE)
    np.testing.assert_array_equal(image, (prompt.token_ids == stored.image_token_id).numpy())
    assert image.sum() > 8
    assert text_of(stored, prompt, Segment.QUESTION).split() == "is it the same ?".split()
    assert text_of(stored, prompt, Segment.CONTEXT).replace(" ", "") == "anote."
    earlier = text_of(stored, prompt, Segment.TEMPLATE)
    assert "what is here ?" in earlier
    assert "a nine" in earlier
    assert prompt.segments[0] == Segment.SINK


def test_a_model_without_its_weights_makes_the_same_prompt(stored: LoadedModel) -> None:
    """What a service does whose engine has the weights in another process."""
    facts = facts_of(stored)
    outline = load_outline(facts)
    assert {p.device.type for p in outline.model.parameters()} == {"meta"}
    assert facts_of(outline) == facts
    there, here = encode(outline, REQUEST), encode(stored, REQUEST)
    for field in fields(here):
        one, other = getattr(here, field.name), getattr(there, field.name)
        if field.name == "pixels":
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in one.items())
        else:
            np.testing.assert_equal(np.asarray(other) if isinstance(one, torch.Tensor) else other, one)


def test_the_answer_is_the_one_that_the_processor_and_generate_give(stored: LoadedModel) -> None:
    steps = list(Engine(stored).generate([REQUEST]))
    chat = [
        {"role": m.role, "content": [{"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "image"} for p in m.parts]}
        for m in TURNS
    ]
    text = stored.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    pictures = [part.image for message in TURNS for part in message.parts if isinstance(part, ImagePart)]
    inputs = stored.processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=False)
    with attention_of(stored.model, "eager"):
        output = stored.model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert steps[0].prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    assert [s.token_id for s in steps if s.token_id >= 0] == output[0, inputs["input_ids"].shape[1] :].tolist()


TILE = "<image>" * 4
EXPANSIONS = {
    "qwen": "<start>" + TILE + "<end>",
    "internvl": "<start>" + TILE * 3 + "<end>",
    "mistral3": "<image><image><row_1_col_1><image><image><end>",
    "smolvlm": f"<fake_token_around_image><row_1_col_1>{TILE}<fake_token_around_image><row_1_col_2>{TILE}\n\n"
    f"<fake_token_around_image><global-img>{TILE}<fake_token_around_image>",
    "merges on both sides": f"\n\n<start>{TILE}<end>\n\n",
}
"""What processors that cannot be built here write for one picture, in the tiny tokenizer's words."""


def origins(expansion: str, before: str, between: str, after: str) -> tuple[Any, list[int], np.ndarray]:
    """Tokenizer, expanded tokens and their segments, for texts around two pictures."""
    tokenizer = build_tiny_tokenizer()
    config = SimpleNamespace(boi_token_index=VISION_START) if expansion.startswith("\n\n<start>") else SimpleNamespace()
    loaded: Any = SimpleNamespace(image_token_id=IMAGE, model=SimpleNamespace(config=config))
    mark = "<start>" if expansion.startswith("\n\n<start>") else "<image>"
    rendered = f"<s>{before}{mark}{between}{mark}{after}<assistant>"
    messages = (Message("user", (TextPart(between, is_context=True), TextPart(after))),)
    plain = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    expanded = tokenizer(rendered.replace(mark, expansion), add_special_tokens=False).input_ids
    marks = character_segments(rendered, messages)
    return tokenizer, expanded, token_segments(loaded, expanded, plain.input_ids, plain.offset_mapping, marks)


@pytest.mark.parametrize("name", EXPANSIONS)
@pytest.mark.parametrize(
    ("before", "between", "after"),
    [("hi ", "one two", "what ?"), ("\n", "one\n", "what ?"), ("", "x", "y"), ("a\n\n", "\n\nred\n\n", "\nwhat ?\n")],
    ids=["words", "newlines", "letters", "double newlines"],
)
def test_text_around_expanded_pictures_keeps_its_origin(name: str, before: str, between: str, after: str) -> None:
    tokenizer, expanded, segments = origins(EXPANSIONS[name], before, between, after)
    ids = np.array(expanded)
    np.testing.assert_array_equal(segments == int(Segment.IMAGE), ids == IMAGE)
    assert tokenizer.decode(ids[segments == int(Segment.CONTEXT)]).strip() == between.strip()
    assert tokenizer.decode(ids[segments == int(Segment.QUESTION)]).strip() == after.strip()


def test_a_text_that_the_processor_rewrites_is_refused() -> None:
    tokenizer = build_tiny_tokenizer()
    loaded: Any = SimpleNamespace(image_token_id=IMAGE, model=SimpleNamespace(config=SimpleNamespace()))
    rendered = "<s>Hello there"
    plain = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    marks = character_segments(rendered, ())
    for other in ("<s>hello there", "<s>Hello there !", "<s>Hello"):
        with pytest.raises(RequestError, match="rewrites the prompt's text"):
            token_segments(loaded, tokenizer(other, add_special_tokens=False).input_ids, plain.input_ids, plain.offset_mapping, marks)
    with pytest.raises(RequestError, match="fewer pictures"):
        token_segments(loaded, plain.input_ids, [*plain.input_ids, IMAGE], [*plain.offset_mapping, (0, 0)], marks)
