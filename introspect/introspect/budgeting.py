"""What a budget allows of a prompt."""

from __future__ import annotations

import math

from introspect.errors import RequestError
from introspect.heads.visual_heads import kv_head_scores
from introspect.loading import LoadedModel
from introspect.policies import get_policy
from introspect.types import Budget


def kept_entries(budget: Budget, prompt_tokens: int) -> int:
    """Mean entries per KV head that a budget allows of a prompt, its last token included.

    Raises:
        RequestError: the budget is contradictory or out of range.
    """
    policy = get_policy(budget.policy)
    if budget.entries is not None and budget.ratio is not None:
        raise RequestError("give a budget in entries or as a ratio, not both")
    if budget.entries is None and budget.ratio is None:
        if policy.needs_budget:
            raise RequestError(f"policy {budget.policy!r} needs a budget (entries, or a share of the prompt)")
        return prompt_tokens
    if not policy.needs_budget:
        raise RequestError(f"policy {budget.policy!r} keeps everything; name another policy to use a budget")
    if budget.entries is not None:
        if budget.entries < 4:
            raise RequestError(f"a budget must be at least 4 entries per KV head, got {budget.entries}")
        return min(budget.entries, prompt_tokens)
    ratio = float(budget.ratio or 0.0)
    if not 0 < ratio <= 1:
        raise RequestError(f"a budget's ratio must be over 0 and at most 1, got {ratio}")
    return max(4, min(prompt_tokens, math.floor(ratio * prompt_tokens)))


def check_budget(loaded: LoadedModel, budget: Budget, prompt_tokens: int) -> None:
    """Make sure that a model can answer a prompt under a budget.

    Raises:
        RequestError: the budget is contradictory or out of range, or its policy needs visual-head scores and there are none that fit.
    """
    kept_entries(budget, prompt_tokens)
    if get_policy(budget.policy).needs_head_scores:
        kv_head_scores(loaded)
