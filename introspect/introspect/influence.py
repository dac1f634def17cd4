"""Future Attention Influence: what a generated token receives from later ones.

FAI (arXiv 2510.13554, definition 4.1) of token s is the mean of A[t, s] over the answer's queries t with
s + 10 <= t <= min(N, s + 50), N being the last. The arena keeps the running sum of that column for every entry,
so two readings of it are enough: behind the query s + 9, and behind the last one that counts.
The arena's sums are over the query heads of a KV head's group: here A is their mean, where the paper has single heads.
Which heads are averaged (the paper's global ones) is left to who reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from introspect_kernels import Arena

FIRST, LAST = 10, 50
"""The paper's horizon: how many tokens later the first and the last query are that count."""
LAGS = (FIRST - 1, LAST)
"""How many tokens before a query the entries are whose sums are read behind it."""


def column_sums(arenas: Sequence[Arena], newest: torch.Tensor, position: torch.Tensor, lags: torch.Tensor) -> torch.Tensor:
    """What the entries some tokens before the newest have received so far; nothing of it is read by the host.

    NaN where an entry is not in its place: there is no such token, it has left a sliding window, or the run was re-budgeted since.

    Args:
        arenas: of each layer, with `received`.
        newest: `int [layers, batch, kv_heads]`, slot of each run's newest entry.
        position: `int32 [batch, kv_heads]`, its token index.
        lags: `int32 [lags]`, how many tokens before it.

    Returns:
        `float32 [batch, lags, layers, kv_heads]`.
    """
    columns = [arena.received for arena in arenas if arena.received is not None]
    if len(columns) < len(arenas):
        raise ValueError("an arena keeps no received attention")
    back = lags[:, None]
    first = torch.stack([arena.start for arena in arenas])
    places = torch.maximum(newest[:, :, None] - back, first[:, :, None]).flatten(1).unbind(0)
    where = torch.stack([arena.position.index_select(0, place) for arena, place in zip(arenas, places, strict=True)])
    sums = torch.stack([column.index_select(0, place) for column, place in zip(columns, places, strict=True)])
    wanted = position[:, None] - back
    found = torch.where(where.unflatten(1, wanted.shape) == wanted, sums.unflatten(1, wanted.shape), torch.nan)
    return found.permute(1, 2, 0, 3)


@torch.inference_mode()
def last_sums(arenas: Sequence[Arena], position: int) -> NDArray[np.float32]:
    """What the entries 1 to `LAST` tokens before the newest one of a sequence have received, `[LAST, layers, kv_heads]`.

    Args:
        arenas: of each layer, of that sequence alone.
        position: the newest entry's token index.
    """
    newest = torch.stack([arena.start + arena.length - 1 for arena in arenas])
    at, lags = torch.full_like(arenas[0].start, position), torch.arange(1, LAST + 1, dtype=torch.int32, device=newest.device)
    sums: NDArray[np.float32] = column_sums(arenas, newest, at, lags)[0].cpu().numpy()
    return sums


def influence(columns: Sequence[NDArray[np.float32]], rest: NDArray[np.float32], tokens: int, group: int) -> NDArray[np.float32]:
    """FAI of every token of an answer, per layer and KV head.

    Args:
        columns: behind each of the answer's queries, from the last prompt token's on, the sums at `LAGS`, `[2, layers, kv_heads]`.
        rest: behind the last of them, see `last_sums`.
        tokens: of the answer.
        group: query heads of a KV head.

    Returns:
        `float32 [tokens, layers, kv_heads]`; NaN for tokens that no query is far enough behind, and where a sum was lost.
    """
    made = np.full((tokens, *rest.shape[1:]), np.nan, dtype=np.float32)
    last = len(columns) - 1  # the query that has token t as its input is number t + 1
    for token in range(tokens):
        end = min(last, token + 1 + LAST)
        count = end - (token + FIRST)
        if count < 1:
            break
        until = columns[end][1] if end == token + 1 + LAST else rest[end - token - 2]
        made[token] = (until - columns[token + FIRST][0]) / (count * group)
    return made
