"""How many threads torch computes with on a CPU."""

from __future__ import annotations

import torch

from introspect.loading import LoadedModel

SMALL = 30_000_000
"""Parameters of a model below which one thread is used on a CPU. The embedded one has three million; `introspect bench service`
measures it with one thread and with one a core."""


def use_threads(model: LoadedModel, threads: int | None) -> None:
    """Let torch compute with so many threads; with one where `model` is small and nobody says.

    Threads of a small operator wait for each other longer than they compute, and with Python's threads for the cores.
    """
    if threads is None and model.device.type == "cpu" and sum(p.numel() for p in model.model.parameters()) < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
