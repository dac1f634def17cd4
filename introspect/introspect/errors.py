"""Errors of the runtime: one base, one class for each thing a caller can put right."""

from __future__ import annotations


class IntrospectError(Exception):
    """Base of every error that `introspect` raises on purpose."""


class ModelLoadError(IntrospectError):
    """A model cannot be loaded, or its attention cannot be measured; the message says why."""


class RequestError(IntrospectError, ValueError):
    """A request cannot be served as it is: what was expected, what came."""


class HeadScoresError(IntrospectError, ValueError):
    """Visual-head scores cannot be read, are another model's, or cannot be measured on this one."""
