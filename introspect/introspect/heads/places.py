"""Which part of the picture each image token shows, in every family: whole pictures, tiles, and a picture beside its crops.

Rows and columns follow from the picture's size as the family's image processor cuts
it, and the tokens' order from how the model lays its features out. Where their
number is not the prompt's, nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

from introspect.errors import HeadScoresError
from introspect.heads.boxes import Axis, Boxes, axis, even, grid, view_of
from introspect.loading import LoadedModel
from introspect.prompt import EncodedPrompt
from introspect_kernels import Segment


def token_boxes(loaded: LoadedModel, prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """What each image token of a prompt with one picture shows: `[image tokens, 4]`, NaN for features that show nothing (row ends).

    Args:
        loaded: the model.
        prompt: with `picture` as its only one.
        picture: as it was given to the prompt.

    Raises:
        HeadScoresError: it cannot be told: an unknown layout, or another number of tokens than the layout gives.
    """
    images = getattr(loaded.processor, "image_processor", None)
    if images is None:
        raise HeadScoresError(f"{loaded.name}: it has no image processor that tells how it cuts pictures")
    found = _LAYOUTS.get(loaded.model.config.model_type, _one_grid)(loaded.model.config, images, prompt, picture)
    expected = int((prompt.segments == Segment.IMAGE).sum())
    if len(found) != expected:
        raise HeadScoresError(
            f"{loaded.name}: a picture of {picture.width} x {picture.height} pixels has {expected} image tokens in the prompt, and "
            f"{len(found)} by the layout of the model type {loaded.model.config.model_type}, so boxes cannot be mapped to them; "
            "prompts of several pictures are not mapped"
        )
    return found


def _one_grid(config: Any, images: Any, prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """One grid over what the processor hands on; a vision tower's patches may leave a rest at the right and the bottom."""
    if len(prompt.image_grids) != 1:
        raise HeadScoresError(
            f"the image tokens form no single grid (tiles, or several pictures), and how the model type {config.model_type} "
            "lays tiles out is not known here, so boxes cannot be mapped to them"
        )
    rows, columns = prompt.image_grids[0]
    left, top, right, bottom = view_of(images, picture.size)
    pixels = prompt.pixels.get("pixel_values")
    if config.model_type in ("llava", "gemma3") and pixels is not None:
        side, patch = pixels.shape[-1], _number(config.vision_config.patch_size)
        right, bottom = (low + (high - low) * (side // patch * patch) / side for low, high in ((left, right), (top, bottom)))
    return even((left, top, right, bottom), rows, columns)


def _llava_next(config: Any, _images: Any, _prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """The picture stretched over one tile, then its tiles as one grid without the padding, each row with a newline feature at its end.

    LLaVA-OneVision thins a grid of more than so many tiles.
    """
    tile, patch = _number(config.vision_config.image_size), _number(config.vision_config.patch_size)
    across, down = _unpadded(config, tile, patch, picture.size)
    ratio = math.sqrt(len(down) * len(across) / _most_tokens(config, tile // patch))
    if ratio > 1.1:
        down, across = (_thinned(line, int(len(line) // ratio)) for line in (down, across))
    rows = grid(down, across).reshape(len(down), len(across), 4)
    ends = np.full((len(down), 1, 4), np.nan)
    return np.concatenate([_mosaic(1, 1, picture.size, tile, patch), np.concatenate([rows, ends], 1).reshape(-1, 4)])


def _most_tokens(config: Any, side: int) -> float:
    """Tokens that a grid may have before it is thinned, for tiles of `side` by `side`."""
    limit = getattr(config, "vision_aspect_ratio", None)
    return int(limit.removeprefix("anyres_max_")) * side**2 if isinstance(limit, str) else math.inf


def _unpadded(config: Any, tile: int, patch: int, size: tuple[int, int]) -> tuple[Axis, Axis]:
    """Columns and rows of the tiles' grid: the picture lies in the middle of its canvas, and tokens of the padding are cut off in pairs."""
    width, height = size
    canvas = select_best_resolution((height, width), config.image_grid_pinpoints)
    inner = get_patch_output_size(np.broadcast_to(np.uint8(0), (height, width, 3)), canvas, "channels_last")
    down, across = (axis(pixels // tile, tile // patch, tile, patch) for pixels in canvas)
    if width / height > len(across) / len(down):
        down = _middle(down, int(round(height * (len(across) / width), 7)))
    else:
        across = _middle(across, int(round(width * (len(down) / height), 7)))
    top, left = ((whole - part) // 2 for whole, part in zip(canvas, inner, strict=True))
    return (across - left) * (width / inner[1]), (down - top) * (height / inner[0])


def _middle(cells: Axis, kept: int) -> Axis:
    cut = (len(cells) - kept) // 2
    return cells[cut : len(cells) - cut]


def _thinned(cells: Axis, count: int) -> Axis:
    """The same stretch in `count` equal steps of cells."""
    edges = np.interp(np.linspace(0, len(cells), count + 1), np.arange(len(cells) + 1), [*cells[:, 0], cells[-1, 1]])
    return np.stack([edges[:-1], edges[1:]], 1)


def _internvl(config: Any, images: Any, prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """Tiles row by row and, where there are several, the whole picture last."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    vision = config.vision_config
    tile, token = _number(vision.image_size), round(_number(vision.patch_size) / config.downsample_ratio)
    columns, rows = (1, 1)
    if len(prompt.pixels["pixel_values"]) > 1:
        columns, rows = get_optimal_tiled_canvas((picture.height, picture.width), (tile, tile), images.min_patches, images.max_patches)
    return _tiles_and_whole(rows, columns, picture.size, tile, token)


def _idefics3(config: Any, images: Any, _prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """Tiles row by row and the whole picture last; a small picture has no tiles."""
    cut = images([[picture]], return_row_col_info=True)
    tile, token = int(images.max_image_size["longest_edge"]), _number(config.vision_config.patch_size) * int(config.scale_factor)
    return _tiles_and_whole(int(cut["rows"][0][0]), int(cut["cols"][0][0]), picture.size, tile, token)


def _gemma3(config: Any, images: Any, prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    if len(prompt.pixels["pixel_values"]) > 1:
        raise HeadScoresError("Gemma 3's crops (pan and scan) are not mapped to boxes; set do_pan_and_scan to false in its processor")
    return _one_grid(config, images, prompt, picture)


def _mistral3(_config: Any, _images: Any, prompt: EncodedPrompt, picture: Image.Image) -> Boxes:
    """The whole picture, resized; padding is only put between pictures of different sizes."""
    if len(prompt.image_grids) != 1:
        raise HeadScoresError("prompts of several pictures are not mapped to boxes")
    return even((0, 0, *picture.size), *prompt.image_grids[0])


def _tiles_and_whole(rows: int, columns: int, size: tuple[int, int], tile: int, token: int) -> Boxes:
    whole = _mosaic(1, 1, size, tile, token)
    return whole if rows * columns <= 1 else np.concatenate([_mosaic(rows, columns, size, tile, token), whole])


def _mosaic(rows: int, columns: int, size: tuple[int, int], tile: int, token: int) -> Boxes:
    """A picture stretched over rows and columns of tiles, one tile's tokens after another's."""
    across, down = (
        axis(tiles, tile // token, tile, token).reshape(tiles, -1, 2) * (pixels / (tiles * tile))
        for tiles, pixels in zip((columns, rows), size, strict=True)
    )
    return np.concatenate([grid(high, wide) for high in down for wide in across])


def _number(value: Any) -> int:
    """A side that may be given once or for both directions."""
    return int(value[0] if isinstance(value, list | tuple) else value)


_LAYOUTS: dict[str, Callable[[Any, Any, EncodedPrompt, Image.Image], Boxes]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_next,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
}
