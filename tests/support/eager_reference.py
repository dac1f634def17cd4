"""What an eager, full-matrix run says: the reference that decoding over an arena is held against.

The run sees prompt and answer at once, builds every attention matrix and
shares no code with the decode path. A budget is imitated by masking: from the
last prompt token on, queries do not see the entries that a policy dropped.
What probabilities alone do not tell (log-sum-exp, share of the output) comes
from the same run's queries, keys and values, in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import TinyModel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from introspect.attention import NAME
from introspect.policies import Prefilled, Selection, get_policy
from introspect.prompt import EncodedPrompt
from introspect.types import StepTrace
from introspect_kernels import NUM_SEGMENTS, Segment

RTOL, ATOL = 2e-4, 2e-5
SPY = "eager_spy"
_UNSEEN = -1e30


@dataclass(frozen=True)
class Layer:
    """One layer of the eager run: scores `[heads, queries, keys]` (masked ones below -1e30) and values `[heads, keys, head_dim]`, fp64."""

    scores: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True)
class EagerRun:
    """Log-probabilities `[tokens, vocab]` and every layer of a run over prompt and answer, and where each token came from."""

    logprobs: torch.Tensor
    layers: list[Layer]
    segments: np.ndarray


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Give the language model another attention function for a while."""
    model.set_attn_implementation({"text_config": name})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": NAME})


def random_choice(tiny: TinyModel, prompt: EncodedPrompt) -> Selection:
    """What policy `random` keeps of the prefilled tokens, by its definition: it depends on the seed and on sizes only."""
    keep = prompt.request.budget.entries
    assert keep is not None
    layers, window = len(tiny.loaded.budgeted), max(1, min(32, keep // 4))
    prefilled = Prefilled(prompt.length - 1, layers, tiny.loaded.num_kv_heads, window, [], prompt.request.budget.seed)
    return get_policy("random").select(prefilled, keep - 1)


def dropped(tiny: TinyModel, prompt: EncodedPrompt, selection: Selection) -> dict[int, torch.Tensor]:
    """For each layer under a budget, `bool [kv_heads, prompt - 1]`: the entries that were not kept."""
    gone = {}
    for layer, heads in zip(tiny.loaded.budgeted, selection, strict=True):
        gone[layer] = torch.ones(tiny.loaded.num_kv_heads, prompt.length - 1, dtype=torch.bool)
        for head, kept in enumerate(heads):
            gone[layer][head, kept] = False
    return gone


def eager_run(tiny: TinyModel, prompt: EncodedPrompt, answer: list[int], gone: dict[int, torch.Tensor] | None = None) -> EagerRun:
    """One eager forward over prompt and answer, with `gone` entries unseen from the last prompt token on."""
    layers: list[Layer] = []

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        k, v = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ k.transpose(-1, -2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        scores = scores + attention_mask[..., : k.shape[-2]]
        if gone is not None and module.layer_idx in gone:
            unseen = gone[module.layer_idx].repeat_interleave(group, 0)[None, :, None]
            first = prompt.length - 1
            scores[:, :, first:, :first] = scores[:, :, first:, :first].masked_fill(unseen, torch.finfo(scores.dtype).min)
        layers.append(Layer(scores[0].double(), v[0].double()))
        return (torch.softmax(scores, -1) @ v).transpose(1, 2), None

    AttentionInterface.register(SPY, spy)
    AttentionMaskInterface.register(SPY, eager_mask)
    ids = torch.cat([prompt.token_ids, torch.tensor(answer, dtype=torch.long)])[None]
    given = tiny.vision_kwargs({**prompt.pixels, "input_ids": ids})
    with attention_of(tiny.loaded.model, SPY), torch.no_grad():
        logits = tiny.loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **given).logits[0]
    segments = np.concatenate([prompt.segments, np.full(len(answer), int(Segment.GENERATED), np.uint8)])
    return EagerRun(torch.log_softmax(logits.float(), -1), layers, segments)


def expected_rows(layer: Layer, segments: np.ndarray, query: int) -> dict[str, np.ndarray]:
    """Statistics of one query for all heads, in fp64 numpy; NaN and -1 where there are none."""
    s, values = layer.scores[:, query, : query + 1].numpy(), layer.v[:, : query + 1].numpy()
    seen, seg, keys = s > _UNSEEN, segments[: query + 1], np.arange(query + 1)
    s = np.where(seen, s, -np.inf)
    prob = np.exp(s - s.max(1, keepdims=True))
    prob /= prob.sum(1, keepdims=True)
    image = seen & (seg == Segment.IMAGE)
    absent = ~image.any(1)
    inside = np.where(image, prob, 0.0)
    inside = inside / np.where(absent, 1.0, inside.sum(1))[:, None]
    part = np.einsum("hs,hsd->hd", np.where(image, prob, 0.0), values)
    whole = np.einsum("hs,hsd->hd", prob, values)
    return {
        "lse": np.log(np.exp(s).sum(1)),
        "entropy": -(prob * np.log(np.maximum(prob, 1e-300))).sum(1),
        "sum_sq": (prob**2).sum(1),
        "max_prob": prob.max(1),
        "argmax_position": prob.argmax(1),
        "mass": np.stack([prob[:, seg == i].sum(1) for i in range(NUM_SEGMENTS)], 1),
        "image_entropy": np.where(absent, np.nan, -(inside * np.log(np.maximum(inside, 1e-300))).sum(1)),
        "image_max": np.where(absent, np.nan, inside.max(1)),
        "image_argmax_position": np.where(absent, -1, inside.argmax(1)),
        "image_output_share": np.where(absent, np.nan, np.linalg.norm(part, axis=1) / np.linalg.norm(whole, axis=1)),
        "self_mass": prob[:, query],
        "previous_mass": prob[:, query - 1],
        "mean_distance": (prob * (query - keys)).sum(1),
        "windowed_distance": (prob * np.minimum(query - keys, 10)).sum(1),
        "retained": np.stack([(seen & (seg == i)).sum(1) for i in range(NUM_SEGMENTS)], 1),
    }


def check_step(step: StepTrace, prompt: EncodedPrompt, run: EagerRun, tiny: TinyModel) -> None:
    """One step of the engine against the eager run's row at the same query."""
    query = prompt.length - 1 + step.index
    assert step.position == query
    if step.logits is not None:
        logprobs = run.logprobs[query]
        assert step.token_id == int(logprobs.argmax())
        assert step.logits.logprob == pytest.approx(float(logprobs[step.token_id]), abs=1e-4)
        assert step.logits.entropy == pytest.approx(float(torch.special.entr(logprobs.exp()).sum()), abs=1e-4)
        first, second = logprobs.topk(2).values.tolist()
        assert step.logits.margin == pytest.approx(first - second, abs=1e-4)
    if step.heads is None:
        return
    group = tiny.loaded.num_heads // tiny.loaded.num_kv_heads
    for number, layer in enumerate(run.layers):
        want = expected_rows(layer, run.segments, query)
        want["retained"] = want["retained"][::group]
        for name, value in want.items():
            got = getattr(step.heads, name)[number]
            np.testing.assert_allclose(got, value, rtol=RTOL, atol=ATOL, err_msg=f"{name}, layer {number}")
