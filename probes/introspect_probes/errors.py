"""Errors of the probes part: one base, one class for each thing a caller can put right."""

from __future__ import annotations


class ProbesError(Exception):
    """Base of every error that `introspect_probes` raises on purpose."""


class CaseError(ProbesError):
    """A `cases.jsonl` line, or the image it names, cannot be used."""


class TraceError(ProbesError):
    """A trace folder is missing, of another schema, or lacks what was asked of it."""


class FitError(ProbesError):
    """The traces cannot support the fit that was asked for."""


class ProbeMismatchError(ProbesError):
    """A probe set was asked to score what it was not fitted for."""
