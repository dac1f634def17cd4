"""Several answers to one request (`n`): an id and a seed for each."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from introspect.types import Request


def choice_id(completion_id: str, index: int) -> str:
    """Under which a choice is remembered and published: the completion's own id for choice 0, else `<completion id>-<index>`."""
    return completion_id if index == 0 else f"{completion_id}-{index}"


def choice_seed(seed: int | None, index: int) -> int | None:
    """The seed of a choice: the request's for choice 0, so that it says what `n: 1` says; else 63 bits of SHA-256 of `seed/index`.

    Without a seed each choice draws on its own.
    """
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8]) >> 1


def choice_requests(request: Request, n: int) -> list[Request]:
    """One request for each of `n` choices; they share messages and pictures."""
    return [
        replace(
            request, id=choice_id(request.id, index), sampling=replace(request.sampling, seed=choice_seed(request.sampling.seed, index))
        )
        for index in range(n)
    ]
