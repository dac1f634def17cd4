"""The cache of one turn taken up by the next: what both have in common stays, the rest is fed token by token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from introspect.answer import Answer
from introspect.budgeting import kept_entries
from introspect.limits import Limits, Need
from introspect.loading import LoadedModel
from introspect.policies import get_policy
from introspect.pool import Runs, SlotPool
from introspect.prompt import EncodedPrompt
from introspect.types import EffectiveBudget, PromptInfo
from introspect_kernels import NUM_SEGMENTS, Segment


def common_prefix(loaded: LoadedModel, pool: SlotPool, last: Answer, prompt: EncodedPrompt) -> int:
    """Tokens of `prompt` that the cache of `last` stands for; 0 where it cannot be taken up.

    A cache is not taken up where pictures or budget have changed, or where layers with a window would have to go back
    to entries that have left it.
    """
    if last.runs is None or prompt.request.budget != last.prompt.request.budget or not _same_pictures(prompt, last.prompt):
        return 0
    layer = loaded.budgeted[0]
    arena = pool.of(layer, [last.runs])
    cached = int(arena.position[(arena.start + arena.length - 1).flatten().long()].max()) + 1
    known = np.array([*last.prompt.token_ids.tolist(), *last.tokens][:cached])
    fresh = prompt.token_ids.numpy()[: prompt.length - 1]
    most = min(len(known), len(fresh))
    different = np.flatnonzero(known[:most] != fresh[:most])
    common = int(different[0]) if len(different) else most
    if (prompt.segments[common:] == Segment.IMAGE).any() or (common < cached and len(loaded.budgeted) < loaded.num_layers):
        return 0
    return common


@torch.inference_mode()
def take_up(loaded: LoadedModel, pool: SlotPool, limits: Limits, answer: Answer, last: Answer, runs: Runs, common: int) -> Need:
    """Make the cache of `last` that of `answer`, whose prompt has `common` tokens with it.

    Entries beyond those are dropped, what is left is labelled as the new prompt says, and room is made for the rest.

    Returns:
        What the answer needs.
    """
    prompt = answer.prompt
    segments = torch.from_numpy(prompt.segments).to(loaded.device)
    for layer in range(loaded.num_layers):
        arena = pool.of(layer, [runs])
        place = torch.arange(int(arena.length.max()), device=loaded.device)
        used = place < arena.length[0][:, None]
        slots = torch.where(used, arena.start[0][:, None] + place, arena.start[0][:, None]).long()
        stays = used & (arena.position[slots] < common)
        arena.segment[slots[stays]] = segments[arena.position[slots[stays]].long()]
        runs.length[layer] = stays.sum(-1)
    appended = prompt.length - common + prompt.request.sampling.max_tokens
    is_bounded = get_policy(prompt.request.budget.policy).needs_budget and appended > limits.slack
    slack = limits.slack if is_bounded else appended
    is_tracked = is_bounded or prompt.request.influence
    pool.track(runs, is_tracked)
    pool.resize(runs, runs.length.cpu() + slack)
    fed = prompt.length - common
    mean = float(runs.length[list(loaded.budgeted)].float().mean()) + (fed - 1) % slack + 1
    answer.at, answer.runs, answer.room = common, runs, slack
    answer.info = _info(last, prompt, mean)
    return Need(slack, is_bounded, runs.slots, is_tracked)


def _info(last: Answer, prompt: EncodedPrompt, mean: float) -> PromptInfo | None:
    """What is told of the prompt; what survives of a window's mass was measured for another prompt, so it is not known."""
    if last.info is None:
        return None
    keep, budget = kept_entries(prompt.request.budget, prompt.length), prompt.request.budget
    retention = np.full_like(last.info.retention, np.nan)
    if not get_policy(budget.policy).needs_budget:
        retention[:, :, np.bincount(prompt.segments[1:-1], minlength=NUM_SEGMENTS) > 0] = 1.0
    return replace(
        last.info,
        request_id=prompt.request.id,
        question=prompt.request.question,
        token_ids=prompt.token_ids.cpu().numpy().astype(np.int64),
        segments=prompt.segments,
        budget=EffectiveBudget(budget.policy, float(keep), mean, prompt.length),
        logical=np.bincount(prompt.segments, minlength=NUM_SEGMENTS).astype(np.int32),
        retention=retention,
    )


def _same_pictures(one: EncodedPrompt, other: EncodedPrompt) -> bool:
    return one.pixels.keys() == other.pixels.keys() and all(torch.equal(one.pixels[name], other.pixels[name]) for name in one.pixels)
