"""Which implementation of an operator runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection

import torch

from introspect_kernels.errors import UnknownImplementationError


def choose(impl: str | None, tensor: torch.Tensor, available: Collection[str]) -> str:
    """The name asked for, or without one `"triton"` on CUDA and `"vectorised"` elsewhere.

    Raises:
        UnknownImplementationError: there is none of that name, or Triton was asked for and cannot run on this tensor.
    """
    name = impl or ("triton" if tensor.is_cuda else "vectorised")
    if name not in available:
        raise UnknownImplementationError(f"impl must be one of {sorted(available)}, got {name!r}")
    if name == "triton":
        _require_triton(tensor)
    return name


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter; it reads the variable when a kernel is decorated, so set it before the import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _require_triton(tensor: torch.Tensor) -> None:
    if importlib.util.find_spec("triton") is None:
        raise UnknownImplementationError(
            "impl 'triton' needs the package triton, which is not installed; pip install 'introspect-mllm[gpu]'"
        )
    if not tensor.is_cuda and not interpreted():
        raise UnknownImplementationError(
            f"impl 'triton' needs tensors on CUDA, got {tensor.device}; on a CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
        )


def values_can_be_read(tensor: torch.Tensor) -> bool:
    """Whether ranges can be checked: not while a graph is traced, nor while one is captured."""
    return not torch.compiler.is_compiling() and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
