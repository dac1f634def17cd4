"""Prefill: run the prompt but its last token, choose what to keep of each layer as soon as it is computed, fill the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from introspect.attention import active, is_active
from introspect.budgeting import kept_entries
from introspect.chunked import chunked_layers
from introspect.keeping import Keeping
from introspect.loading import LoadedModel
from introspect.policies import Selection
from introspect.pool import Runs, SlotPool
from introspect.prefill_pass import LayerCache, PrefillPass, PromptReadError
from introspect.prompt import EncodedPrompt
from introspect.stepwise import Pause
from introspect.types import PromptInfo
from introspect_kernels import compact_into, pad_selection

MAX_WINDOW = 32
"""Longest observation window, in queries (SnapKV's)."""


@dataclass(frozen=True)
class PrefilledSequence:
    """One sequence ready to decode.

    Attributes:
        info: what probes and clients are told of its prompt.
        runs: where its kept entries lie in the pool.
        kept: per layer and KV head, their token indices.
    """

    info: PromptInfo
    runs: Runs
    kept: Selection


def prefill(loaded: LoadedModel, prompts: Sequence[EncodedPrompt]) -> list[PrefilledSequence]:
    """Prefill prompts of one length (and one shape of pictures) in one forward call, into a pool of their own."""
    pool = SlotPool(loaded.num_layers, loaded.num_kv_heads, loaded.device)
    work = Prefill(loaded, prompts, pool, slack=[p.request.sampling.max_tokens + 1 for p in prompts])
    work.run()
    return work.sequences


def prefill_shape(prompt: EncodedPrompt) -> tuple[object, ...]:
    """Prompts of equal shape share a prefill; the budget's window is part of it."""
    window = kept_entries(prompt.request.budget, prompt.length) // 4
    return (prompt.length, window, tuple((name, tuple(value.shape)) for name, value in sorted(prompt.pixels.items())))


def same_prompt(one: EncodedPrompt, other: EncodedPrompt) -> bool:
    """Whether reading one is reading the other: the same tokens, pictures and budget."""
    first, second = one.request, other.request
    if one.length != other.length or one.pixels.keys() != other.pixels.keys() or first.budget != second.budget:
        return False
    pairs = [(one.token_ids, other.token_ids), *((value, other.pixels[name]) for name, value in one.pixels.items())]
    same = all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)
    return same and first.question == second.question and np.array_equal(one.segments, other.segments)


class Prefill:
    """Prompts of one shape while they are read.

    Layer after layer is computed, its entries are chosen and moved to the pool, and
    the rest is forgotten: beside the pool there is never more than one layer's
    keys and values, unless a policy must see all layers before it chooses (`Policy.is_layerwise`).

    Args:
        loaded: the model.
        prompts: of one shape.
        pool: where kept entries go.
        slack: for each prompt, slots of each run for entries to come.
        tracked: for each prompt, whether received attention is kept.
        chunk: tokens that a layer reads at a time; the whole prompt without.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[EncodedPrompt],
        pool: SlotPool,
        *,
        slack: Sequence[int],
        tracked: Sequence[bool] | None = None,
        chunk: int | None = None,
    ) -> None:
        self._loaded, self._prompts, self._pool = loaded, list(prompts), pool
        self._tokens = prompts[0].length - 1
        self._chunk = min(chunk or self._tokens, self._tokens)
        self._window = max(1, min(MAX_WINDOW, *(kept_entries(p.request.budget, p.length) // 4 for p in prompts)))
        self._keeping = [Keeping(loaded, p, self._window) for p in prompts]
        self._slack = torch.tensor(slack, dtype=torch.int32)[:, None]
        self._runs = [pool.new_runs(tracked=one) for one in tracked or [False] * len(prompts)]
        self.sequences: list[PrefilledSequence] = []
        """Filled by `run`, in the order of the prompts."""

    def free(self) -> None:
        """Give back what was allocated, for work that is not wanted any more."""
        for runs in self._runs:
            self._pool.release(runs)

    @torch.inference_mode()
    def run(self, pause: Pause | None = None) -> None:
        """Read the prompts.

        Args:
            pause: called after each chunk of each layer with its number of tokens, over all prompts.
        """
        record = PrefillPass(self._tokens, self._window, self._finish_layer, last=self._loaded.num_layers - 1)
        with suppress(PromptReadError), active(record), self._embeddings(record), self._chunks(record, pause):
            self._loaded.model.model(**self._inputs())
        for number, keeping in enumerate(self._keeping):
            if keeping.waits:
                for layer, k, v in keeping.choose_waiting():
                    self._store(layer, [number], k[None], v[None])
        self.sequences = [
            PrefilledSequence(keeping.info(), runs, keeping.kept) for keeping, runs in zip(self._keeping, self._runs, strict=True)
        ]

    def _inputs(self) -> dict[str, Any]:
        loaded, prompts = self._loaded, self._prompts
        head = torch.stack([p.token_ids for p in prompts])[:, :-1].to(loaded.device)
        positions = torch.stack([p.positions for p in prompts], 1)[:, :, :-1].to(loaded.device)
        inputs: dict[str, Any] = {
            "input_ids": head,
            "attention_mask": torch.ones_like(head),
            "position_ids": positions if positions.shape[0] > 1 else positions[0],
            "use_cache": False,
        }
        if loaded.kinds_input is not None:
            inputs[loaded.kinds_input] = (head == loaded.image_token_id).int()
        for name in prompts[0].pixels:
            value = torch.cat([p.pixels[name] for p in prompts]).to(loaded.device)
            inputs[name] = value.to(loaded.dtype) if value.is_floating_point() else value
        return inputs

    def _chunks(self, record: PrefillPass, pause: Pause | None) -> AbstractContextManager[None]:
        if self._chunk >= self._tokens and pause is None:
            return nullcontext()
        rows = len(self._prompts)

        def spent(tokens: int) -> None:
            if pause is not None:
                pause(tokens * rows)

        layers: Any = self._loaded.language_model.layers
        return chunked_layers(layers, self._tokens, self._chunk, spent, lambda: is_active(record))

    @contextmanager
    def _embeddings(self, record: PrefillPass) -> Iterator[None]:
        """Shows each prompt what enters the language model's first layer."""

        def show(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            if is_active(record):
                for keeping, embeddings in zip(self._keeping, kwargs["inputs_embeds"], strict=True):
                    keeping.see(embeddings)

        handle = self._loaded.language_model.register_forward_pre_hook(show, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _finish_layer(self, layer: int, cache: LayerCache) -> None:
        chosen = [keeping.choose(layer, cache, row) for row, keeping in enumerate(self._keeping)]
        ready = [row for row, kept in enumerate(chosen) if kept is not None]
        if len(ready) == len(chosen):
            self._store(layer, ready, cache.k, cache.v)
        elif ready:
            self._store(layer, ready, cache.k[ready], cache.v[ready])

    def _store(self, layer: int, rows: list[int], k: torch.Tensor, v: torch.Tensor) -> None:
        """Move some prompts' kept entries of a layer, `[rows, kv_heads, tokens, head_dim]`, to the pool."""
        runs = [self._runs[row] for row in rows]
        segments = torch.from_numpy(np.stack([self._prompts[row].segments[:-1] for row in rows])).to(k.device)
        if all(self._keeping[row].keeps_all(layer) for row in rows):
            count = torch.full((len(rows), k.shape[1]), k.shape[2], dtype=torch.int32)
            self._pool.allocate(layer, runs, count + self._slack[rows], k)
            self._pool.fill(layer, runs, k, v, segments)
            return
        index, count = pad_selection([self._keeping[row].kept[layer] for row in rows], "cpu")
        self._pool.allocate(layer, runs, count + self._slack[rows], k)
        arena = self._pool.of(layer, runs)
        compact_into(arena, k, v, index.to(k.device), count.to(k.device), segments)
        for number, one in enumerate(runs):
            one.length[layer] = arena.length[number]
