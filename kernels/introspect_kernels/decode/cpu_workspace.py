"""Memory that the CPU path uses again and again.

Fresh memory of these sizes comes from the operating system page by page, which
can cost more than the arithmetic done in it.
"""

from __future__ import annotations

import threading

import torch

_LOCAL = threading.local()


def scratch(size: int) -> int:
    """Address of uninitialised memory of this thread for `size` numbers of four bytes; the next call hands out the same again."""
    held: torch.Tensor | None = getattr(_LOCAL, "held", None)
    if held is None or held.numel() < size:
        held = _LOCAL.held = torch.empty(size)
    return held.data_ptr()
