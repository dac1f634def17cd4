"""A KV budget as people write it: `64` entries per KV head, or `25%` of the prompt."""

from __future__ import annotations

import re

from introspect.types import Budget

DEFAULT_POLICY = "snapkv"
"""Who chooses the entries where a budget is given and no policy."""

_ENTRIES = re.compile(r"[1-9][0-9]{0,8}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")


def parse_kv_budget(text: str) -> tuple[int | None, float | None]:
    """Read a budget: `(entries, None)` or `(None, ratio)`.

    Raises:
        ValueError: it is neither a positive whole number nor a percentage over 0 and up to 100.
    """
    if _ENTRIES.fullmatch(text):
        return int(text), None
    found = _PERCENT.fullmatch(text)
    if found and 0 < float(found[1]) <= 100:
        return None, float(found[1]) / 100
    raise ValueError('expected entries per KV head such as "64", or a share of the prompt such as "25%"')


def make_budget(kv_budget: str | None, policy: str | None) -> Budget:
    """The budget that a pair of options means.

    Neither is the whole cache; a budget alone is kept by `DEFAULT_POLICY`.

    Raises:
        ValueError: the two contradict each other, or the budget cannot be read.
    """
    if kv_budget is None:
        if policy in (None, "full"):
            return Budget()
        raise ValueError(f'policy "{policy}" chooses what a budget keeps: give a kv_budget too, such as "64" or "25%"')
    if policy == "full":
        raise ValueError('policy "full" keeps the whole cache: leave out kv_budget, or name a policy that keeps a part of it')
    entries, ratio = parse_kv_budget(kv_budget)
    return Budget(policy=policy or DEFAULT_POLICY, entries=entries, ratio=ratio)


def override_budget(default_kv: str | None, default_policy: str | None, kv_budget: str | None, policy: str | None) -> Budget:
    """The budget of a request: its own options over the server's.

    Raises:
        ValueError: as `make_budget`.
    """
    if kv_budget is None and policy is None:
        return make_budget(default_kv, default_policy)
    if kv_budget is None and policy != "full":
        kv_budget = default_kv
    if policy is None and default_policy != "full":
        policy = default_policy
    return make_budget(kv_budget, policy)
