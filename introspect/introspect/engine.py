"""The engine: prompts in, one measured step after another out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.attention import DecodePass, active
from introspect.loading import LoadedModel
from introspect.prefill import PrefilledSequence, build_arenas, check_budget, kept_entries, prefill
from introspect.prompt import EncodedPrompt, encode
from introspect.sampling import choose, logit_stats
from introspect.types import FinishReason, HeadRow, LogitStats, Request, StepTrace
from introspect_kernels import Arena, HeadStats, Segment

DEFAULT_BATCH = 32


@dataclass
class _Running:
    """One sequence while it decodes; `finish` is set once only its reading row is still to come."""

    sequence: PrefilledSequence
    generator: torch.Generator
    forced: Sequence[int] | None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None

    @property
    def position(self) -> int:
        """Token index of the next query: the last prompt token first, then each generated one."""
        return self.sequence.prompt.length - 1 + len(self.tokens)

    @property
    def rotary(self) -> torch.Tensor:
        """Rotary position of the next query, `[axes]`."""
        prompt = self.sequence.prompt
        if not self.tokens:
            return prompt.positions[:, -1]
        return torch.full((prompt.positions.shape[0],), prompt.next_position + len(self.tokens) - 1)

    @property
    def query_token(self) -> int:
        """The token whose query is next."""
        return self.tokens[-1] if self.tokens else int(self.sequence.prompt.token_ids[-1])

    @property
    def query_segment(self) -> int:
        """Where that token came from."""
        return int(Segment.GENERATED) if self.tokens else int(self.sequence.prompt.segments[-1])


class Engine:
    """Runs requests on one model, several at a time, every step measured.

    Args:
        loaded: the model.
        max_batch: how many sequences decode together.
        impl: which `decode_attention` implementation; see there.
    """

    def __init__(self, loaded: LoadedModel, *, max_batch: int = DEFAULT_BATCH, impl: str | None = None) -> None:
        self.loaded, self._max_batch, self._impl = loaded, max_batch, impl

    def generate(self, requests: Sequence[Request]) -> Iterator[StepTrace]:
        """Generate answers; steps of requests that run together come interleaved.

        Each request ends with a closing step (`token_id` -1) that carries `finish_reason`.
        Closing the iterator frees everything.

        Raises:
            RequestError: a request cannot be served; raised before any step of any request.
        """
        yield from self.generate_encoded([self.encode(request) for request in requests])

    def encode(self, request: Request) -> EncodedPrompt:
        """Check a request and turn it into model inputs.

        Raises:
            RequestError: it cannot be served.
        """
        prompt = encode(self.loaded, request)
        check_budget(self.loaded, request.budget, prompt.length)
        return prompt

    def generate_encoded(self, prompts: Sequence[EncodedPrompt]) -> Iterator[StepTrace]:
        """Like `generate`, from prompts that are encoded already."""
        for first in range(0, len(prompts), self._max_batch):
            yield from self._run(prompts[first : first + self._max_batch], None)

    def score(self, requests: Sequence[Request], continuations: Sequence[Sequence[int]]) -> list[list[StepTrace]]:
        """Teacher-forced steps: what the engine would have measured had it generated the given tokens.

        Args:
            requests: the prompts; their sampling parameters but `max_tokens` are not used.
            continuations: for each, the token ids to force, at least one and at most `max_tokens`.

        Returns:
            For each request its steps, the closing one included.

        Raises:
            RequestError: a request cannot be served.
        """
        prompts = [self.encode(request) for request in requests]
        results: dict[int, list[StepTrace]] = {}
        for first in range(0, len(prompts), self._max_batch):
            chunk = slice(first, first + self._max_batch)
            infos: dict[int, int] = {}
            for step in self._run(prompts[chunk], continuations[chunk], infos):
                results.setdefault(first + infos[id(step.prompt)], []).append(step)
        return [results[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[EncodedPrompt]) -> list[PrefilledSequence]:
        """Prefill in groups that fit one forward call, results in the order given."""
        order = sorted(range(len(prompts)), key=lambda i: _shape(prompts[i]))
        done: dict[int, PrefilledSequence] = {}
        for _, same in groupby(order, key=lambda i: _shape(prompts[i])):
            indices = list(same)
            done |= dict(zip(indices, prefill(self.loaded, [prompts[i] for i in indices]), strict=True))
        return [done[i] for i in range(len(prompts))]

    def _run(
        self, prompts: Sequence[EncodedPrompt], forced: Sequence[Sequence[int]] | None, order: dict[int, int] | None = None
    ) -> Iterator[StepTrace]:
        sequences = self._prefill(prompts)
        if order is not None:
            order |= {id(s.info): i for i, s in enumerate(sequences)}
        running = [_Running(s, _generator(s.prompt.request), None if forced is None else forced[i]) for i, s in enumerate(sequences)]
        arenas = build_arenas(self.loaded, sequences)
        while running:
            logprobs, heads = self._step(running, arenas)
            steps, keep = [], []
            wanted = [self._next_token(r, logprobs[row]) for row, r in enumerate(running)]
            stats = logit_stats(logprobs, wanted)
            for row, item in enumerate(running):
                step, ended = self._advance(item, wanted[row], stats[row], heads[row])
                steps += step
                if not ended:
                    keep.append(row)
            if len(keep) < len(running):
                rows = torch.tensor(keep, dtype=torch.long, device=self.loaded.device)
                arenas = [arena.select(rows) for arena in arenas]
                running = [running[row] for row in keep]
            yield from steps

    @torch.inference_mode()
    def _step(self, running: list[_Running], arenas: list[Arena]) -> tuple[torch.Tensor, list[HeadRow]]:
        """One decode step of all running sequences: log-probabilities `[batch, vocab]` and head rows."""
        device = self.loaded.device
        token_ids = torch.tensor([[r.query_token] for r in running], device=device)
        rotary = torch.stack([r.rotary for r in running], 1)[:, :, None].to(device)
        decode = DecodePass(
            arenas,
            torch.tensor([r.position for r in running], dtype=torch.int32, device=device),
            torch.tensor([r.query_segment for r in running], dtype=torch.uint8, device=device),
            self._impl,
        )
        with active(decode):
            hidden = self.loaded.model.model(
                input_ids=token_ids, position_ids=rotary if rotary.shape[0] > 1 else rotary[0], use_cache=False
            ).last_hidden_state
        logits = self.loaded.model.lm_head(hidden[:, -1]).float()
        return torch.log_softmax(logits, -1), head_rows([decode.stats[layer] for layer in range(self.loaded.num_layers)])

    def _next_token(self, item: _Running, logprobs: torch.Tensor) -> int:
        if item.forced is not None and len(item.tokens) < len(item.forced):
            return int(item.forced[len(item.tokens)])
        return choose(logprobs, item.sequence.prompt.request.sampling, item.generator)

    def _advance(self, item: _Running, token: int, stats: LogitStats, heads: HeadRow) -> tuple[list[StepTrace], bool]:
        """The steps that this decode step makes of one sequence, and whether it is over."""
        info, index = item.sequence.info, len(item.tokens)
        if item.finish is not None:
            return [StepTrace(info, index, item.position, -1, "", True, None, heads, item.finish)], True
        position = item.position
        item.tokens.append(token)
        is_end = token in self.loaded.eos_ids
        before = item.text
        sampling = item.sequence.prompt.request.sampling
        limit = len(item.forced) if item.forced is not None else sampling.max_tokens
        is_last = is_end or len(item.tokens) >= limit
        stopped = self._extend_text(item, sampling.stop, is_last=is_last)
        step = StepTrace(info, index, position, token, item.text[len(before) :], is_end or self._is_special(token), stats, heads)
        if is_end and item.forced is None:
            return [step, StepTrace(info, index + 1, position + 1, -1, "", True, None, None, "stop")], True
        if stopped or len(item.tokens) >= limit:
            item.finish = "stop" if stopped else "length"
        return [step], False

    def _extend_text(self, item: _Running, stop: tuple[str, ...], *, is_last: bool) -> bool:
        """Bring the text up to the tokens; True if a stop string ended it.

        What may be the beginning of a stop string is held back until it is known not to be.
        """
        text: str = self.loaded.tokenizer.decode(item.tokens, skip_special_tokens=True)
        if text.endswith("\ufffd") and not is_last:  # bytes of an unfinished character: wait for the rest
            return False
        found = [at for s in stop if (at := text.find(s)) >= 0]
        if found:
            item.text = text[: min(found)]
        else:
            item.text = text if is_last else text[: len(text) - _held_back(text, stop)]
        return bool(found)

    def _is_special(self, token: int) -> bool:
        return token in self.loaded.tokenizer.all_special_ids


def head_rows(layers: list[HeadStats]) -> list[HeadRow]:
    """One row for each sequence from the statistics of every layer."""
    stacked: dict[str, NDArray[np.float32]] = {
        name: torch.stack([getattr(stats, name) for stats in layers], 1).cpu().numpy() for name in HeadStats._fields
    }
    return [HeadRow(**{name: value[row] for name, value in stacked.items()}) for row in range(layers[0].lse.shape[0])]


def _shape(prompt: EncodedPrompt) -> tuple[object, ...]:
    """Prompts of equal shape share a prefill; the budget's window is part of it."""
    window = kept_entries(prompt.request.budget, prompt.length) // 4
    return (prompt.length, window, tuple((name, tuple(value.shape)) for name, value in sorted(prompt.pixels.items())))


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((k for s in stop for k in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:k])), default=0)


def _generator(request: Request) -> torch.Generator:
    generator = torch.Generator()
    if request.sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.sampling.seed)
    return generator
