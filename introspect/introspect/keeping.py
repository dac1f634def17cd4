"""What is kept of one prompt: each layer's choice as the layers come, and what the choice has cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.budgeting import kept_entries
from introspect.heads.visual_heads import kv_head_scores
from introspect.loading import LoadedModel
from introspect.policies import Prefilled, Selection, get_policy
from introspect.prefill_pass import LayerCache
from introspect.prompt import EncodedPrompt
from introspect.types import EffectiveBudget, PromptInfo
from introspect_kernels import NUM_SEGMENTS, Segment


class Keeping:
    """One prompt's choices while it is read.

    A layer with a window of its own is left alone: it keeps its window and no policy sees it.

    Args:
        loaded: the model.
        prompt: the prompt; all its tokens but the last are prefilled.
        window: how many of the last queries the scores rest on.
    """

    def __init__(self, loaded: LoadedModel, prompt: EncodedPrompt, window: int) -> None:
        self._loaded, self._prompt = loaded, prompt
        self._keep = kept_entries(prompt.request.budget, prompt.length)
        self._complete = self._keep >= prompt.length
        self._policy = get_policy("full" if self._complete else prompt.request.budget.policy)
        self.waits = not self._policy.is_layerwise()
        """Whether all layers must be there before the first choice is made."""
        self.kept: Selection = []
        """Per layer and KV head the token indices that are kept; empty lists while a choice waits."""
        self._scores: list[torch.Tensor] = []
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._prefilled = self._described(window)
        self._choices: Iterator[list[torch.Tensor]] | None = None
        present = np.bincount(prompt.segments[1:-1], minlength=NUM_SEGMENTS) > 0
        self._retention = np.full((loaded.num_layers, loaded.num_kv_heads, NUM_SEGMENTS), np.nan, dtype=np.float32)
        for layer in loaded.budgeted:
            self._retention[layer, :, present] = 1.0
        self._present = present
        self._one_hot = np.eye(NUM_SEGMENTS, dtype=np.float64)[prompt.segments[:-1]]
        self._one_hot[0] = 0
        self._image_embedding: NDArray[np.float32] | None = None

    def keeps_all(self, layer: int) -> bool:
        """Whether a layer's choice is every entry, in order."""
        return self._complete and self._loaded.windows[layer] is None

    def see(self, embeddings: torch.Tensor) -> None:
        """Take note of what enters the language model, `[tokens, hidden]`."""
        image = torch.from_numpy(self._prompt.segments[:-1] == Segment.IMAGE).to(embeddings.device)
        if bool(image.any()):
            self._image_embedding = embeddings[image].float().mean(0).cpu().numpy()

    def choose(self, layer: int, cache: LayerCache, row: int) -> list[torch.Tensor] | None:
        """What to keep of a layer, per KV head; `None` where the choice waits for the other layers.

        Args:
            layer: the layers come in order.
            cache: what it leaves.
            row: which of the cache's sequences this prompt is.
        """
        tokens, window = cache.k.shape[2], self._loaded.windows[layer]
        if window is not None:
            kept = [torch.arange(max(0, tokens - (window - 1)), tokens)] * self._loaded.num_kv_heads
            self.kept.append(kept)
            return kept
        if not self._complete:
            self._scores.append(window_scores(cache, row))
        self._keys.append(cache.k[row])
        self._values.append(cache.v[row])
        if self.waits:
            self.kept.append([])
            return None
        if self._choices is None:
            self._choices = self._policy.layers(self._prefilled, self._entries)
        kept = next(self._choices)
        self._keys[-1] = self._values[-1] = cache.k.new_empty(0)
        self._note(layer, len(self._keys) - 1, kept)
        return kept

    def choose_waiting(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Choose for all layers that waited; yields each with its keys and values `[kv_heads, tokens, head_dim]`."""
        selection = self._policy.select(self._prefilled, self._entries)
        for number, (layer, kept) in enumerate(zip(self._loaded.budgeted, selection, strict=True)):
            self._note(layer, number, kept)
            yield layer, self._keys[number], self._values[number]
            self._keys[number] = self._values[number] = self._keys[number].new_empty(0)

    def info(self) -> PromptInfo:
        """What is told of the prompt once it is read."""
        prompt, budget = self._prompt, self._prompt.request.budget
        mean_kept = float(np.mean([len(kept) for layer in self._loaded.budgeted for kept in self.kept[layer]])) + 1
        return PromptInfo(
            request_id=prompt.request.id,
            question=prompt.request.question,
            token_ids=prompt.token_ids.cpu().numpy().astype(np.int64),
            segments=prompt.segments,
            image_embedding=self._image_embedding,
            image_grids=prompt.image_grids,
            budget=EffectiveBudget(budget.policy, float(self._keep), mean_kept, prompt.length),
            logical=np.bincount(prompt.segments, minlength=NUM_SEGMENTS).astype(np.int32),
            retention=self._retention,
        )

    @property
    def _entries(self) -> int:
        """Entries that a policy may keep of the prefilled ones; the last prompt token is another."""
        return self._prompt.length - 1 if self._complete else self._keep - 1

    def _described(self, window: int) -> Prefilled:
        segments, layers = self._prompt.segments[:-1], list(self._loaded.budgeted)
        return Prefilled(
            len(segments),
            len(layers),
            self._loaded.num_kv_heads,
            window,
            self._scores,
            self._prompt.request.budget.seed,
            keys=self._keys,
            question_start=_question_start(segments),
            head_scores=kv_head_scores(self._loaded)[layers] if self._policy.needs_head_scores else None,
            values=self._values,
            segments=segments,
            grids=self._prompt.image_grids,
        )

    def _note(self, layer: int, number: int, kept: list[torch.Tensor]) -> None:
        """Keep a choice and the share of the window's mass per segment that survives it, position 0 aside."""
        if layer < len(self.kept):
            self.kept[layer] = kept
        else:
            self.kept.append(kept)
        if self._complete:
            return
        mass = self._scores[number].double().cpu().numpy()
        for head, entries in enumerate(kept):
            survived = mass[head, entries] @ self._one_hot[entries]
            whole = mass[head] @ self._one_hot
            self._retention[layer, head, self._present] = (survived / np.maximum(whole, 1e-12))[self._present]


def _question_start(segments: NDArray[np.uint8]) -> int:
    """Index of the question's first token; the number of tokens where there is none."""
    found = np.flatnonzero(segments == Segment.QUESTION)
    return int(found[0]) if len(found) else len(segments)


def window_scores(cache: LayerCache, row: int) -> torch.Tensor:
    """`[kv_heads, tokens]`: attention of the last queries on every entry, summed over queries, mean over the group."""
    q, k = cache.q[row].float(), cache.k[row].float()
    kv_heads, tokens, _ = k.shape
    heads, window, head_dim = q.shape
    scores = q.reshape(kv_heads, heads // kv_heads * window, head_dim) @ k.transpose(-1, -2) * cache.scale
    scores = scores.view(kv_heads, heads // kv_heads, window, tokens)
    query = torch.arange(tokens - window, tokens, device=k.device)
    seen = torch.arange(tokens, device=k.device) <= query[:, None] if cache.mask is None else cache.mask[row, 0]
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).sum(2).mean(1)
