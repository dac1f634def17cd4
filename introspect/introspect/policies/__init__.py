"""Policies: who chooses which KV entries of the prompt are kept. One file each."""

from __future__ import annotations

from introspect.errors import RequestError
from introspect.policies.adakv import AdaKV, AdaKVPaper
from introspect.policies.base import Policy, Prefilled, Selection
from introspect.policies.full import Full
from introspect.policies.keydiff import KeyDiff
from introspect.policies.pyramidkv import PyramidKV
from introspect.policies.random import Random
from introspect.policies.snapkv import SnapKV
from introspect.policies.sparsemm import SparseMM, SparseMMPaper
from introspect.policies.streaming import Streaming

_ALL: tuple[type[Policy], ...] = (Full, Random, SnapKV, SparseMM, SparseMMPaper, AdaKV, AdaKVPaper, PyramidKV, Streaming, KeyDiff)
_POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in _ALL}

__all__ = ["Policy", "Prefilled", "Selection", "available_policies", "get_policy"]


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
