"""The image tokens of a box are those that change when the picture changes there: shown by the model itself, in every family."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, TinyModel
from PIL import Image

from introspect.errors import HeadScoresError
from introspect.heads.boxes import Boxes, tokens_in_box
from introspect.heads.cases import Box
from introspect.heads.places import token_boxes
from introspect.loading import LoadedModel
from introspect.prompt import EncodedPrompt, encode, encoded_from_inputs
from introspect.types import Request
from introspect_kernels import Segment

SIZES = ((60, 40), (44, 84), (131, 37), (150, 170))
"""Pictures whose sides are and are not multiples of tiles and patches, wide and tall, smaller and larger than the models' canvas."""
_MIXING = re.compile(r"(vision|visual).*(out_proj|attn\.proj|o_proj|attention\.projection_layer)\.(weight|bias)$")


def blinkered(tiny: TinyModel) -> LoadedModel:
    """The model with a vision tower whose patches do not attend to one another, and pictures resized without mixing pixels."""
    changed = 0
    with torch.no_grad():
        for name, weight in tiny.loaded.model.named_parameters():
            if _MIXING.search(name):
                weight.zero_()
                changed += 1
    assert changed
    images = tiny.images or tiny.loaded.processor.image_processor
    images.resample = Image.Resampling.NEAREST
    return tiny.loaded if tiny.images is None else replace(tiny.loaded, processor=SimpleNamespace(image_processor=images))


def prompt_of(tiny: TinyModel, loaded: LoadedModel, picture: Image.Image) -> EncodedPrompt:
    """Through the processor where the family's can be built, from its image tensors else."""
    if tiny.images is None:
        return encode(loaded, Request.ask("r", "what is here ?", picture))
    tensors = tiny.see([picture])
    ids = torch.tensor([[1, 20, *tiny.spans(tensors)[0], 21, 22]])
    segments = np.where(ids[0] == loaded.image_token_id, int(Segment.IMAGE), int(Segment.QUESTION)).astype(np.uint8)
    return encoded_from_inputs(loaded, Request("r", ()), {"input_ids": ids, **tensors}, segments)


class Seen(Exception):  # noqa: N818 - it stops the model where there is nothing more to see
    """What enters the language model."""


def embeddings(loaded: LoadedModel, prompt: EncodedPrompt) -> torch.Tensor:
    """What enters the language model at the prompt's image tokens."""

    def spy(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        raise Seen(kwargs["inputs_embeds"][0])

    handle = loaded.language_model.register_forward_pre_hook(spy, with_kwargs=True)
    ids, positions = prompt.token_ids[None], prompt.positions[:, None]
    kinds = {} if loaded.kinds_input is None else {loaded.kinds_input: (ids == loaded.image_token_id).int()}
    given = {"position_ids": positions if len(positions) > 1 else positions[0], "use_cache": False, **kinds, **prompt.pixels}
    try:
        with torch.no_grad(), pytest.raises(Seen) as found:
            loaded.model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
    finally:
        handle.remove()
    entered: torch.Tensor = found.value.args[0]
    return entered[torch.from_numpy(prompt.segments == Segment.IMAGE)]


def some_boxes(rng: np.random.Generator, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Boxes of every size, corners among them."""
    found = [(0, 0, 9, 9), (width - 9, height - 9, width, height), (0, 0, width, height)]
    for _ in range(5):
        wide, high = (int(rng.integers(5, side)) for side in (width, height))
        left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
        found.append((left, top, left + wide, top + high))
    return found


def repainted(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Every pixel in a box turned to its opposite."""
    pixels = np.asarray(picture).copy()
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = (pixels[top:bottom, left:right].astype(int) + 128) % 256
    return Image.fromarray(pixels)


def check(tiny: TinyModel, loaded: LoadedModel, size: tuple[int, int], margin: float) -> Boxes:
    """Changed tokens are those of the box, give or take `margin` pixels at its edges: one of the smallest canvas."""
    rng = np.random.default_rng([*size, 5])
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    prompt = prompt_of(tiny, loaded, picture)
    shown, before = token_boxes(loaded, prompt, picture), embeddings(loaded, prompt)
    for box in some_boxes(rng, *size):
        after = embeddings(loaded, prompt_of(tiny, loaded, repainted(picture, box)))
        changed = set(torch.nonzero((after - before).abs().amax(1) > 1e-6).flatten().tolist())
        left, top, right, bottom = box
        fewest: Box = (left + margin, top + margin, right - margin, bottom - margin)
        most: Box = (left - margin, top - margin, right + margin, bottom + margin)
        assert set(tokens_in_box(fewest, shown)) <= changed <= set(tokens_in_box(most, shown)), f"{size}, box {box}"
    return shown


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_of_a_box_are_those_that_show_it(name: str) -> None:
    torch.manual_seed(0)
    tiny = FAMILIES[name]()
    loaded = blinkered(tiny)
    counts = set()
    for size in SIZES:
        shown = check(tiny, loaded, size, margin=1 + max(size) / 32)
        counts.add(len(shown))
        if name not in ("llava-next", "llava-onevision"):
            assert len(tokens_in_box((0, 0, *size), shown)) == len(shown)
    assert len(counts) > 1 or name in ("embedded", "gemma3")  # tiles and grids follow the picture


def test_newline_features_and_padding_show_nothing() -> None:
    torch.manual_seed(0)
    tiny = FAMILIES["llava-next"]()
    loaded = blinkered(tiny)
    picture = Image.new("RGB", (64, 30))  # on a canvas of 64 x 32: 17 rows of padding cut to none, 4 rows of 8 + 1 newline
    shown = token_boxes(loaded, prompt_of(tiny, loaded, picture), picture)
    assert len(shown) == 16 + 4 * 9
    crops = shown[16:].reshape(4, 9, 4)
    assert np.isnan(crops[:, 8]).all()
    np.testing.assert_allclose(crops[:, 0, 1], [-1, 7, 15, 23])  # the picture begins one row of pixels below its canvas
    np.testing.assert_allclose(shown[5], [16, 7.5, 32, 15])


def test_a_grid_too_large_is_thinned_and_still_found() -> None:
    torch.manual_seed(0)
    tiny = FAMILIES["llava-onevision"]()
    loaded = blinkered(tiny)
    loaded.model.config.vision_aspect_ratio = loaded.processor.vision_aspect_ratio = "anyres_max_1"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    prompt = prompt_of(tiny, loaded, picture)
    shown, before = token_boxes(loaded, prompt, picture), embeddings(loaded, prompt)
    assert len(shown) == 16 + 4 * 5  # of 8 x 8
    np.testing.assert_allclose(shown[16 + 5 + 2], [32, 16, 48, 32])
    after = embeddings(loaded, prompt_of(tiny, loaded, repainted(picture, (36, 20, 44, 28))))
    assert torch.nonzero((after - before).abs().amax(1) > 1e-6).flatten().tolist() == [6, 23]
    assert tokens_in_box((36, 20, 44, 28), shown).tolist() == [6, 23]


def test_patches_that_leave_a_rest() -> None:
    """SigLIP's 384 pixels hold 27 patches of 14 and a rest of 6, in every tile."""
    torch.manual_seed(0)
    tiny = FAMILIES["llava-onevision"]()
    vision = SimpleNamespace(image_size=384, patch_size=14)
    config = SimpleNamespace(
        model_type="llava_onevision",
        vision_config=vision,
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[384, 768], [768, 768]],
    )
    loaded = replace(tiny.loaded, model=SimpleNamespace(config=config))
    prompt = replace(tiny.prompt(), segments=np.full(27 * 27 + 27 * 55, int(Segment.IMAGE), np.uint8))
    crops = token_boxes(loaded, prompt, Image.new("RGB", (768, 384)))[27 * 27 :].reshape(27, 55, 4)
    np.testing.assert_allclose(crops[0, [0, 26, 27, 53]], [[0, 0, 14, 14], [364, 0, 378, 14], [384, 0, 398, 14], [748, 0, 762, 14]])
    np.testing.assert_allclose(crops[26, 0], [0, 364, 14, 378])


def test_what_cannot_be_mapped_says_why() -> None:
    torch.manual_seed(0)
    tiny = FAMILIES["idefics3"]()
    picture = Image.new("RGB", (60, 40))
    prompt = prompt_of(tiny, tiny.loaded, picture)
    with pytest.raises(HeadScoresError, match=r"a picture of 10 x 300 pixels has 20 image tokens in the prompt, and 12 by the layout"):
        token_boxes(tiny.loaded, prompt, Image.new("RGB", (10, 300)))
    crops = replace(tiny.loaded, model=SimpleNamespace(config=SimpleNamespace(model_type="gemma3")))
    with pytest.raises(HeadScoresError, match="pan and scan"):
        token_boxes(crops, replace(prompt, pixels={"pixel_values": torch.zeros(3, 3, 32, 32)}), picture)
    with pytest.raises(HeadScoresError, match="no image processor"):
        token_boxes(replace(tiny.loaded, processor=tiny.loaded.tokenizer), prompt, picture)
    unknown = replace(tiny.loaded, model=SimpleNamespace(config=SimpleNamespace(model_type="else")))
    with pytest.raises(HeadScoresError, match=r"form no single grid .* model type else"):
        token_boxes(unknown, prompt, picture)
