"""How a picture's image tokens lie: rows and columns, where they form one grid."""

from __future__ import annotations

from itertools import pairwise

import torch

from introspect.loading import LoadedModel


def image_grids(loaded: LoadedModel, token_ids: torch.Tensor, pixels: dict[str, torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each picture's tokens; empty where they form no single grid, or nothing tells which.

    Several tiles of one picture, rows of any resolution with a token at their
    end, and a picture beside its own crops are no single grid.
    """
    if "image_grid_thw" in pixels:
        merge = int(loaded.model.config.vision_config.spatial_merge_size)
        grids = tuple((int(h) // merge, int(w) // merge) for _, h, w in pixels["image_grid_thw"])
    elif loaded.model.config.model_type == "mistral3":
        side = int(loaded.model.config.vision_config.patch_size) * int(loaded.model.config.spatial_merge_size)
        grids = tuple((int(h) // side, int(w) // side) for h, w in pixels.get("image_sizes", ()))
    else:
        grids = _square_grids(loaded, token_ids, pixels)
    return grids if sum(rows * columns for rows, columns in grids) == int((token_ids == loaded.image_token_id).sum()) else ()


def _square_grids(loaded: LoadedModel, token_ids: torch.Tensor, pixels: dict[str, torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """One square for each entry of `pixel_values`, where the prompt shows that each is a picture of its own."""
    values = pixels.get("pixel_values")
    if values is None or values.dim() != 4:
        return ()
    places = (token_ids == loaded.image_token_id).nonzero().flatten().tolist()
    runs = 1 + sum(after > before + 1 for before, after in pairwise(places))
    pictures = len(values)
    if runs not in (1, pictures) or (runs == 1 < pictures and loaded.model.config.model_type != "llava"):
        return ()
    side = round((len(places) / pictures) ** 0.5)
    return ((side, side),) * pictures
