"""What an engine may use, and what a request will need at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from introspect.budgeting import kept_entries
from introspect.errors import RequestError
from introspect.loading import LoadedModel
from introspect.policies import get_policy
from introspect.prompt import EncodedPrompt

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Limits:
    """Bounds of an engine.

    Attributes:
        max_batch: how many sequences decode together.
        kv_bytes: memory of all keys and values, with what is known of each entry; requests beyond it wait. Without it
            only `max_batch` bounds them.
        slack: entries of generated tokens that a run under a budget has room for before it is re-budgeted; answers that are
            shorter get room for exactly what they may need.
        prefill_chunk: tokens of a prompt that are read through all layers between two decode steps of
            other sequences. What stalls them is that work and, once for each prompt, its pictures' way through the vision tower.
        refill: places that must be free before waiting requests join, so that they are prefilled together.
        capture: on a GPU, whether decode steps are replayed as CUDA graphs, one for each batch size that is a power of two.
            Memory of ended requests is then kept for the next ones.
    """

    max_batch: int = DEFAULT_BATCH
    kv_bytes: int | None = None
    slack: int = 256
    prefill_chunk: int = 512
    refill: int = 1
    capture: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: a bound is too small.
        """
        least = {"max_batch": 1, "slack": 2, "prefill_chunk": 1, "refill": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.kv_bytes is not None and self.kv_bytes < 1:
            raise ValueError(f"kv_bytes must be at least 1, got {self.kv_bytes}")


@dataclass(frozen=True)
class Need:
    """What a request takes.

    Attributes:
        slack: slots of each run for entries to come.
        is_bounded: whether the answer may outgrow them, so that its runs are re-budgeted when they are full.
        slots: of all its runs.
        is_tracked: whether what its entries receive is kept.
    """

    slack: int
    is_bounded: bool
    slots: int
    is_tracked: bool


def need_of(loaded: LoadedModel, prompt: EncodedPrompt, limits: Limits) -> Need:
    """What a request takes at most (the `-paper` policies may round up by an entry a head)."""
    request, tokens = prompt.request, prompt.length - 1
    appended = request.sampling.max_tokens + 1
    is_bounded = get_policy(request.budget.policy).needs_budget and appended > limits.slack
    slack = limits.slack if is_bounded else appended
    keep = min(kept_entries(request.budget, prompt.length) - 1, tokens)
    entries = sum(slack + (keep if window is None else min(window - 1, tokens)) for window in loaded.windows)
    return Need(slack, is_bounded, entries * loaded.num_kv_heads, is_bounded or request.influence)


def slot_bytes(loaded: LoadedModel, *, tracked: bool) -> int:
    """Bytes of one slot: a key, a value, its position and segment, and where it is tracked what it received."""
    text = loaded.model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * int(head_dim) * loaded.dtype.itemsize + 5 + (8 if tracked else 0)


def bytes_of(loaded: LoadedModel, needs: Sequence[Need]) -> int:
    """KV memory of requests that run together; where one is tracked, all slots are."""
    return sum(need.slots for need in needs) * slot_bytes(loaded, tracked=any(need.is_tracked for need in needs))


def check_fits(loaded: LoadedModel, need: Need, limits: Limits) -> None:
    """Refuse a request that could never run.

    Raises:
        RequestError: it needs more memory than there is.
    """
    if limits.kv_bytes is not None and bytes_of(loaded, [need]) > limits.kv_bytes:
        raise RequestError(
            f"the request needs up to {bytes_of(loaded, [need])} bytes of KV cache, and the engine has {limits.kv_bytes}: "
            "shorten the prompt, lower max_tokens or give a smaller budget"
        )
