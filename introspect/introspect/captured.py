"""A decode step as one CUDA graph: captured once for each shape of batch, replayed for every step of it.

What a step needs is on the device before it begins (`DecodeStep.load`) and what it gives is read when it is done, so
that its device part can be recorded as it is: layers, attention with statistics, logits, sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

logger = logging.getLogger(__name__)

Outputs = TypeVar("Outputs")


class Captured(Generic[Outputs]):
    """Runs a step's device part: as it is the first time, which compiles what must be compiled; from then on as a graph.

    The buffers that it reads and writes must stay where they are. A step that cannot be captured (the model reads
    a value on the host) says so once and runs as it is.

    Args:
        compute: the device part, on a CUDA device; takes whether a token is forced and whether one is drawn, which make different graphs.
    """

    def __init__(self, compute: Callable[[bool, bool], Outputs]) -> None:
        self._compute = compute
        self._ran: set[tuple[bool, bool]] = set()
        self._graphs: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        self._refused = False

    def __call__(self, forces: bool, samples: bool) -> Outputs:
        """The outputs; the next call writes them anew."""
        variant = forces, samples
        if variant not in self._graphs and (self._refused or variant not in self._ran or not self._capture(variant)):
            self._ran.add(variant)
            return self._compute(*variant)
        graph, outputs = self._graphs[variant]
        graph.replay()
        return outputs

    def _capture(self, variant: tuple[bool, bool]) -> bool:
        """Record the step, which does not run it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self._compute(*variant)
        except Exception:
            logger.warning("the decode step cannot be captured as a CUDA graph; it runs operator by operator", exc_info=True)
            self._refused = True
            return False
        self._graphs[variant] = graph, outputs
        return True
