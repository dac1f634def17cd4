"""What query rows give every key of one run, in plain torch: the core of the CPU paths."""

from __future__ import annotations

import torch

TILE_ELEMENTS = 1 << 21
"""Scores held at once (8 MB of fp32); more keys than fit are taken in tiles, which costs a second product with K."""


def run_columns(
    q: torch.Tensor,
    k: torch.Tensor,
    position: torch.Tensor,
    limit: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    *,
    skip_self: bool = False,
    tile_elements: int = TILE_ELEMENTS,
) -> torch.Tensor:
    """Sum over rows of exp(score - lse), `float32 [members, entries]`.

    Args:
        q: `[members, rows, head_dim]`, query heads that read these keys.
        k: `[entries, head_dim]`.
        position: `int32 [entries]`.
        limit: `int32 [rows]`, each row's own token index; every row sees an entry.
        lse: `float32 [members, rows]`, or None to find it here.
        scale: factor on the scores.
        skip_self: leave out the entry whose token index is the row's own.
        tile_elements: scores held at once.
    """
    members, rows, head_dim = q.shape
    flat = q.float().reshape(members * rows, head_dim) * scale
    tile = max(256, tile_elements // max(1, members * rows))
    tiles = [slice(at, at + tile) for at in range(0, k.shape[0], tile)]

    def scores(part: slice) -> torch.Tensor:
        found = (flat @ k[part].float().T).view(members, rows, -1)
        return found.masked_fill_(position[part] > limit[:, None], -torch.inf)

    if lse is None and len(tiles) > 1:
        lse = torch.logsumexp(torch.stack([torch.logsumexp(scores(part), -1) for part in tiles]), 0)
    columns = []
    for part in tiles:
        p = torch.softmax(scores(part), -1) if lse is None else torch.exp(scores(part) - lse[..., None])
        if skip_self:
            p = p.masked_fill_(position[part] == limit[:, None], 0.0)
        columns.append(p.sum(1))
    return torch.cat(columns, -1)
