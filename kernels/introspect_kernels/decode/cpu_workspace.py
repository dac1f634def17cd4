"""Memory that the CPU path uses again and again.

Fresh memory of these sizes comes from the operating system page by page, which
can cost more than the arithmetic done in it.
"""

from __future__ import annotations

import math
import threading

import torch

_LOCAL = threading.local()


def scratch(name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Uninitialised fp32 memory of this thread; the next call with the same name hands out the same memory again."""
    buffers: dict[tuple[str, torch.device], torch.Tensor] = _LOCAL.__dict__.setdefault("buffers", {})
    size = math.prod(shape)
    held = buffers.get((name, device))
    if held is None or held.numel() < size:
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False):
            held = buffers[name, device] = torch.empty(size, device=device)
    return held[:size].view(shape)
