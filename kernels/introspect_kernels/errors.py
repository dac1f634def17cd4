"""Errors of the kernels part."""

from __future__ import annotations


class KernelError(Exception):
    """Base of every error that `introspect_kernels` raises on purpose."""


class KernelInputError(KernelError, ValueError):
    """A tensor has the wrong shape, dtype, device or range; the message says expected and got."""


class UnknownImplementationError(KernelError, ValueError):
    """An implementation was asked for by name that is not built or cannot run here."""


class ArenaFullError(KernelError, RuntimeError):
    """A head has no slot left for one more entry."""
