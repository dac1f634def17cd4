"""Prefill: run the prompt but its last token, choose what to keep, fill the arenas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.attention import PrefillPass, active
from introspect.errors import RequestError
from introspect.heads.visual_heads import kv_head_scores
from introspect.loading import LoadedModel
from introspect.policies import Prefilled, Selection, get_policy
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, EffectiveBudget, PromptInfo
from introspect_kernels import NUM_SEGMENTS, Arena, Segment

MAX_WINDOW = 32
"""Longest observation window, in queries (SnapKV's)."""


@dataclass(frozen=True)
class PrefilledSequence:
    """One sequence ready to decode.

    Attributes:
        prompt: the encoded prompt.
        info: what probes and clients are told of it.
        k: per layer and KV head, the kept keys `[kept, head_dim]`.
        v: likewise.
        kept: per layer and KV head, their token indices.
    """

    prompt: EncodedPrompt
    info: PromptInfo
    k: list[list[torch.Tensor]]
    v: list[list[torch.Tensor]]
    kept: Selection


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


@torch.inference_mode()
def prefill(loaded: LoadedModel, prompts: list[EncodedPrompt]) -> list[PrefilledSequence]:
    """Prefill prompts of one length (and one shape of pictures) in one forward call."""
    device = loaded.device
    window = max(1, min(MAX_WINDOW, *(kept_entries(p.request.budget, p.length) // 4 for p in prompts)))
    record = PrefillPass(window)
    head = torch.stack([p.token_ids for p in prompts])[:, :-1].to(device)
    positions = torch.stack([p.positions for p in prompts], 1)[:, :, :-1].to(device)
    inputs: dict[str, Any] = {
        "input_ids": head,
        "attention_mask": torch.ones_like(head),
        "position_ids": positions if positions.shape[0] > 1 else positions[0],
        "use_cache": False,
    }
    for name in prompts[0].pixels:
        value = torch.cat([p.pixels[name] for p in prompts]).to(device)
        inputs[name] = value.to(loaded.dtype) if value.is_floating_point() else value
    with active(record), _embeddings(loaded) as embeddings:
        loaded.model.model(**inputs)
    return [_sequence(loaded, prompt, row, record, embeddings[0][row]) for row, prompt in enumerate(prompts)]


@contextmanager
def _embeddings(loaded: LoadedModel) -> Iterator[list[torch.Tensor]]:
    """Collects what enters the language model's first layer, `[batch, tokens, hidden]`."""
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    handle = loaded.model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _sequence(loaded: LoadedModel, prompt: EncodedPrompt, row: int, record: PrefillPass, embeddings: torch.Tensor) -> PrefilledSequence:
    budget, tokens = prompt.request.budget, prompt.length - 1
    keep = kept_entries(budget, prompt.length)
    policy = get_policy(budget.policy)
    layers = range(loaded.num_layers)
    complete = keep >= prompt.length
    scores = [] if complete else [_window_scores(record, layer, row) for layer in layers]
    prefilled = Prefilled(
        tokens,
        loaded.num_layers,
        loaded.num_kv_heads,
        record.window,
        scores,
        budget.seed,
        keys=[record.k[layer][row] for layer in layers],
        question_start=_question_start(prompt.segments[:-1]),
        head_scores=kv_head_scores(loaded) if policy.needs_head_scores and not complete else None,
        values=[record.v[layer][row] for layer in layers],
        segments=prompt.segments[:-1],
        grids=prompt.image_grids,
    )
    selection = get_policy("full").select(prefilled, tokens) if complete else policy.select(prefilled, keep - 1)
    segments = prompt.segments
    counts = np.bincount(segments, minlength=NUM_SEGMENTS).astype(np.int32)
    image = torch.from_numpy(segments[:-1] == Segment.IMAGE).to(embeddings.device)
    mean_kept = float(np.mean([len(kept) for heads in selection for kept in heads])) + 1
    info = PromptInfo(
        request_id=prompt.request.id,
        question=prompt.request.question,
        token_ids=prompt.token_ids.cpu().numpy().astype(np.int64),
        segments=segments,
        image_embedding=embeddings[image].float().mean(0).cpu().numpy() if bool(image.any()) else None,
        image_grids=prompt.image_grids,
        budget=EffectiveBudget(budget.policy, float(keep), mean_kept, prompt.length),
        logical=counts,
        retention=_retention(selection, scores, segments[:-1], loaded),
    )
    return PrefilledSequence(
        prompt,
        info,
        [[record.k[layer][row, h, kept.to(loaded.device)] for h, kept in enumerate(selection[layer])] for layer in layers],
        [[record.v[layer][row, h, kept.to(loaded.device)] for h, kept in enumerate(selection[layer])] for layer in layers],
        selection,
    )


def _question_start(segments: NDArray[np.uint8]) -> int:
    """Index of the question's first token; the number of tokens where there is none."""
    found = np.flatnonzero(segments == Segment.QUESTION)
    return int(found[0]) if len(found) else len(segments)


def _window_scores(record: PrefillPass, layer: int, row: int) -> torch.Tensor:
    """`[kv_heads, tokens]`: attention of the last queries on every entry, summed over queries, mean over the group."""
    q, k = record.q[layer][row].float(), record.k[layer][row].float()
    kv_heads, tokens, _ = k.shape
    heads, window, head_dim = q.shape
    scores = q.reshape(kv_heads, heads // kv_heads * window, head_dim) @ k.transpose(-1, -2) * record.scale[layer]
    scores = scores.view(kv_heads, heads // kv_heads, window, tokens)
    query = torch.arange(tokens - window, tokens, device=k.device)
    future = torch.arange(tokens, device=k.device) > query[:, None]
    return torch.softmax(scores.masked_fill(future, -torch.inf), -1).sum(2).mean(1)


def _retention(selection: Selection, scores: list[torch.Tensor], segments: NDArray[np.uint8], loaded: LoadedModel) -> NDArray[np.float32]:
    """Share of the window's mass per segment that survived, position 0 aside; all of it where nothing was dropped."""
    present = np.bincount(segments[1:], minlength=NUM_SEGMENTS) > 0
    result = np.full((loaded.num_layers, loaded.num_kv_heads, NUM_SEGMENTS), np.nan, dtype=np.float32)
    if not scores:
        result[:, :, present] = 1.0
        return result
    one_hot = np.eye(NUM_SEGMENTS, dtype=np.float64)[segments]
    one_hot[0] = 0
    for layer, heads in enumerate(selection):
        mass = scores[layer].double().cpu().numpy()
        for head, kept in enumerate(heads):
            survived = mass[head, kept] @ one_hot[kept]
            whole = mass[head] @ one_hot
            result[layer, head, present] = (survived / np.maximum(whole, 1e-12))[present]
    return result


def build_arenas(loaded: LoadedModel, sequences: list[PrefilledSequence]) -> list[Arena]:
    """One arena a layer holding every sequence's kept entries, with slack for its answer."""
    arenas = []
    for layer in range(loaded.num_layers):
        slack = [s.prompt.request.sampling.max_tokens + 1 for s in sequences]
        sizes = [[len(kept) + extra for kept in s.kept[layer]] for s, extra in zip(sequences, slack, strict=True)]
        first = sequences[0].k[layer][0]
        arena = Arena.empty(torch.tensor(sizes, dtype=torch.int32, device=first.device), first.shape[-1], first.dtype)
        for row, sequence in enumerate(sequences):
            segments = torch.from_numpy(sequence.prompt.segments)
            for head, kept in enumerate(sequence.kept[layer]):
                arena.fill(row, head, sequence.k[layer][head], sequence.v[layer][head], kept, segments[kept])
        arenas.append(arena)
    return arenas
