"""The engine: prompts in, one measured step after another out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from weakref import WeakSet

from introspect.budgeting import check_budget
from introspect.forward import Forward
from introspect.limits import DEFAULT_BATCH, Limits
from introspect.loading import LoadedModel
from introspect.pool import KVBytes
from introspect.prompt import EncodedPrompt, encode
from introspect.scheduler import Scheduler
from introspect.types import Request, StepTrace

Progress = Callable[[int, int], None]
"""Hears how many requests are done, and of how many."""


class Engine:
    """Runs requests on one model, several at a time, every step measured.

    Args:
        loaded: the model.
        max_batch: how many sequences decode together.
        kv_bytes: memory of all keys and values; without it only `max_batch` bounds them. See `Limits`.
        slack: entries of generated tokens that a run under a budget has room for before it is re-budgeted.
        prefill_chunk: tokens of a prompt that are read between two decode steps of other sequences.
        impl: which `decode_attention` implementation; see there.
        capture: on a GPU, whether decode steps are replayed as CUDA graphs; see `Limits`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch: int = DEFAULT_BATCH,
        kv_bytes: int | None = None,
        slack: int = Limits.slack,
        prefill_chunk: int = Limits.prefill_chunk,
        impl: str | None = None,
        capture: bool = Limits.capture,
    ) -> None:
        self.loaded = loaded
        self.limits = Limits(max_batch, kv_bytes, slack, prefill_chunk, capture=capture)
        self._impl, self._forward = impl, Forward(loaded)
        self._schedulers: WeakSet[Scheduler] = WeakSet()

    @property
    def kv_bytes(self) -> KVBytes:
        """Memory of keys and values now, of everything this engine runs."""
        return sum((scheduler.kv_bytes for scheduler in self._schedulers), KVBytes())

    def scheduler(self, *, refill: int = 1) -> Scheduler:
        """A scheduler of this engine's limits, for who submits requests one by one."""
        made = Scheduler(self.loaded, replace(self.limits, refill=refill), self._impl, self._forward)
        self._schedulers.add(made)
        return made

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> Iterator[StepTrace]:
        """Generate answers; steps of requests that run together come interleaved.

        Each request ends with a closing step (`token_id` -1) that carries `finish_reason`.
        Closing the iterator frees everything. A request that fails while it runs does not touch the
        others: its error is raised when they are done.

        Args:
            requests: in the order in which they join.
            progress: hears of every request that is done.

        Raises:
            RequestError: a request cannot be served; raised before any step of any request.
        """
        yield from self.generate_encoded([self.encode(request) for request in requests], progress=progress)

    def encode(self, request: Request) -> EncodedPrompt:
        """Check a request and turn it into model inputs.

        Raises:
            RequestError: it cannot be served.
        """
        prompt = encode(self.loaded, request)
        check_budget(self.loaded, request.budget, prompt.length)
        return prompt

    def generate_encoded(self, prompts: Sequence[EncodedPrompt], *, progress: Progress | None = None) -> Iterator[StepTrace]:
        """Like `generate`, from prompts that are encoded already."""
        for _, step in self._run(prompts, [None] * len(prompts), progress):
            yield step

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
        return self.score_encoded([self.encode(request) for request in requests], continuations)

    def score_encoded(self, prompts: Sequence[EncodedPrompt], continuations: Sequence[Sequence[int]]) -> list[list[StepTrace]]:
        """Like `score`, from prompts that are encoded already."""
        results: list[list[StepTrace]] = [[] for _ in prompts]
        for number, step in self._run(prompts, continuations, None):
            results[number].append(step)
        return results

    def _run(
        self, prompts: Sequence[EncodedPrompt], forced: Sequence[Sequence[int] | None], progress: Progress | None
    ) -> Iterator[tuple[int, StepTrace]]:
        """Steps, each with its prompt's number."""
        scheduler = self.scheduler(refill=max(1, self.limits.max_batch // 4))
        problem: Exception | None = None
        done = 0
        try:
            numbers = {scheduler.submit(p, f): number for number, (p, f) in enumerate(zip(prompts, forced, strict=True))}
            while scheduler.has_work:
                for answer, event in scheduler.step():
                    if isinstance(event, StepTrace):
                        yield numbers[answer], event
                    else:
                        problem = problem or event
                    if isinstance(event, Exception) or event.finish_reason is not None:
                        done += 1
                        if progress is not None:
                            progress(done, len(prompts))
        finally:
            scheduler.close()
        if problem is not None:
            raise problem
