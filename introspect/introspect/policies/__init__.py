"""Policies: who chooses which KV entries of the prompt are kept. One file each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from introspect.errors import RequestError
from introspect.policies.adakv import AdaKV, AdaKVPaper
from introspect.policies.base import Policy, Prefilled, Selection
from introspect.policies.coverage import Coverage
from introspect.policies.full import Full
from introspect.policies.keydiff import KeyDiff
from introspect.policies.pyramidkv import PyramidKV
from introspect.policies.random import Random
from introspect.policies.snapkv import SnapKV
from introspect.policies.sparsemm import SparseMM, SparseMMPaper
from introspect.policies.streaming import Streaming

_ALL: tuple[type[Policy], ...] = (Full, Random, SnapKV, SparseMM, SparseMMPaper, AdaKV, AdaKVPaper, PyramidKV, Streaming, KeyDiff, Coverage)
_POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in _ALL}

RECOMMENDED = Coverage.name
"""The policy to use where the cache must be smaller: it holds longest (see the README's figures)."""

__all__ = ["RECOMMENDED", "Policy", "Prefilled", "Selection", "added", "available_policies", "get_policy"]


def available_policies() -> tuple[str, ...]:
    """Names that a budget may give as its policy."""
    return tuple(_POLICIES)


def get_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in _POLICIES:
        raise RequestError(f"policy must be one of {', '.join(_POLICIES)}, got {name!r}")
    return _POLICIES[name]()


@contextmanager
def added(*policies: type[Policy]) -> Iterator[None]:
    """Let budgets name policies of one's own, for the duration of the context.

    Raises:
        ValueError: a name is taken.
    """
    names = [policy.name for policy in policies]
    taken = [name for i, name in enumerate(names) if name in _POLICIES or name in names[:i]]
    if taken:
        raise ValueError(f"a policy needs a name of its own; taken: {', '.join(taken)}")
    _POLICIES.update(zip(names, policies, strict=True))
    try:
        yield
    finally:
        for name in names:
            del _POLICIES[name]
