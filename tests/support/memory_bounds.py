"""In Triton's interpreter, an address outside the tensors of a launch is an error, whether or not what was read there is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


class OutOfBoundsError(Exception):
    """A kernel touched memory that is not its own."""


@contextmanager
def checked_memory() -> Iterator[None]:
    """Every load and store of every kernel launched meanwhile is checked."""
    launch, load, store = GridExecutor.__call__, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    bounds: list[np.ndarray] = []

    def checked_launch(executor: Any, *values: Any, **named: Any) -> None:
        tensors = [value for value in (*values, *named.values()) if isinstance(value, torch.Tensor) and value.numel()]
        bounds.append(np.array([_span(tensor) for tensor in tensors], dtype=np.uint64))
        try:
            launch(executor, *values, **named)
        finally:
            bounds.pop()

    def checked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask, bounds[-1])
        return load(builder, pointers, mask, *rest)

    def checked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask, bounds[-1])
        return store(builder, pointers, value, mask, *rest)

    with (
        mock.patch.object(GridExecutor, "__call__", checked_launch),
        mock.patch.object(InterpreterBuilder, "create_masked_load", checked_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", checked_store),
    ):
        yield


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + last * tensor.element_size()


def _check(pointers: Any, mask: Any, spans: np.ndarray) -> None:
    used = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))[mask.data.astype(bool)]
    if used.size and not ((used[:, None] >= spans[:, 0]) & (used[:, None] <= spans[:, 1])).any(1).all():
        raise OutOfBoundsError(f"{pointers.dtype} addresses outside of the launch's {len(spans)} tensors")
