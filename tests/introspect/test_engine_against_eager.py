"""Every statistic of every generated token against one computed from an eager, full-matrix run.

The eager run sees prompt and answer at once, builds every attention matrix and
shares no code with the decode path. What probabilities alone do not tell
(log-sum-exp, share of the output) comes from the same run's queries, keys and
values, in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from families import TinyModel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from introspect.attention import NAME
from introspect.engine import Engine
from introspect.prompt import EncodedPrompt
from introspect.types import StepTrace
from introspect_kernels import NUM_SEGMENTS, Segment

RTOL, ATOL = 2e-4, 2e-5
SPY = "eager_spy"


@contextmanager
def eager_run(tiny: TinyModel, prompt: EncodedPrompt, answer: list[int]) -> Iterator[tuple[Any, list[dict[str, torch.Tensor]]]]:
    """Outputs of one eager forward over prompt and answer, and each layer's q, k, v."""
    seen: list[dict[str, torch.Tensor]] = []

    def spy(_module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        k, v = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ k.transpose(-1, -2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        scores = scores + attention_mask[..., : k.shape[-2]]
        weights = torch.softmax(scores, -1)
        seen.append({"scores": scores[0].double(), "v": v[0].double()})
        return (weights @ v).transpose(1, 2), weights

    AttentionInterface.register(SPY, spy)
    AttentionMaskInterface.register(SPY, eager_mask)
    model = tiny.loaded.model
    model.set_attn_implementation({"text_config": SPY})
    try:
        ids = torch.cat([prompt.token_ids, torch.tensor(answer)])[None]
        given = {**prompt.pixels, "input_ids": ids}
        kwargs: dict[str, Any] = dict(tiny.vision_kwargs({**tiny.inputs(0), **given}))
        if "mm_token_type_ids" in kwargs:
            kwargs["mm_token_type_ids"] = (ids == tiny.loaded.image_token_id).int()
        with torch.no_grad():
            yield model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_attentions=True, **kwargs), seen
    finally:
        model.set_attn_implementation({"text_config": NAME})


def expected_rows(p: torch.Tensor, scores: torch.Tensor, v: torch.Tensor, segments: np.ndarray, query: int) -> dict[str, np.ndarray]:
    """Statistics of one query for all heads, from its probabilities `[heads, keys]`, in fp64 numpy."""
    prob, s, values = p.double().numpy()[:, : query + 1], scores.numpy()[:, : query + 1], v.numpy()[:, : query + 1]
    keys = np.arange(query + 1)
    seg = segments[: query + 1]
    image = seg == Segment.IMAGE
    inside = prob[:, image] / prob[:, image].sum(1, keepdims=True)
    part = np.einsum("hs,hsd->hd", prob[:, image], values[:, image])
    whole = np.einsum("hs,hsd->hd", prob, values)
    return {
        "lse": np.log(np.exp(s).sum(1)),
        "entropy": -(prob * np.log(np.maximum(prob, 1e-300))).sum(1),
        "sum_sq": (prob**2).sum(1),
        "max_prob": prob.max(1),
        "argmax_position": prob.argmax(1),
        "mass": np.stack([prob[:, seg == i].sum(1) for i in range(NUM_SEGMENTS)], 1),
        "image_entropy": -(inside * np.log(np.maximum(inside, 1e-300))).sum(1),
        "image_max": inside.max(1),
        "image_argmax_position": np.flatnonzero(image)[inside.argmax(1)],
        "image_output_share": np.linalg.norm(part, axis=1) / np.linalg.norm(whole, axis=1),
        "self_mass": prob[:, query],
        "previous_mass": prob[:, query - 1],
        "mean_distance": (prob * (query - keys)).sum(1),
        "windowed_distance": (prob * np.minimum(query - keys, 10)).sum(1),
    }


@pytest.mark.parametrize("seed", [0, 3])
def test_tokens_logprobs_and_statistics_equal_the_eager_run(tiny: TinyModel, seed: int) -> None:
    prompt = tiny.prompt(seed, max_tokens=5)
    steps = list(Engine(tiny.loaded).generate_encoded([prompt]))
    answer = [s.token_id for s in steps if s.token_id >= 0]
    segments = np.concatenate([prompt.segments, np.full(len(answer), int(Segment.GENERATED), np.uint8)])
    with eager_run(tiny, prompt, answer) as (outputs, seen):
        logprobs = torch.log_softmax(outputs.logits[0].float(), -1)
        for step in steps:
            check_step(step, prompt, logprobs, outputs, seen, segments, tiny)


def check_step(
    step: StepTrace, prompt: EncodedPrompt, logprobs: torch.Tensor, outputs: Any, seen: Any, segments: np.ndarray, tiny: TinyModel
) -> None:
    """One step of the engine against the eager run's row at the same query."""
    query = prompt.length - 1 + step.index
    assert step.position == query
    if step.logits is not None:
        assert step.token_id == int(logprobs[query].argmax())
        assert step.logits.logprob == pytest.approx(float(logprobs[query, step.token_id]), abs=1e-4)
        assert step.logits.entropy == pytest.approx(float(torch.special.entr(logprobs[query].exp()).sum()), abs=1e-4)
        first, second = logprobs[query].topk(2).values.tolist()
        assert step.logits.margin == pytest.approx(first - second, abs=1e-4)
    if step.heads is None:
        return
    for layer in range(tiny.loaded.num_layers):
        want = expected_rows(outputs.attentions[layer][0, :, query], seen[layer]["scores"][:, query], seen[layer]["v"], segments, query)
        for name, value in want.items():
            np.testing.assert_allclose(getattr(step.heads, name)[layer], value, rtol=RTOL, atol=ATOL, err_msg=f"{name}, layer {layer}")
        counts = np.bincount(segments[: query + 1], minlength=NUM_SEGMENTS)
        assert (step.heads.retained[layer] == counts).all()


def test_full_policy_gives_the_tokens_of_transformers_generate(tiny: TinyModel) -> None:
    prompt = tiny.prompt(1, max_tokens=8)
    ours = [s.token_id for s in Engine(tiny.loaded).generate_encoded([prompt]) if s.token_id >= 0]
    given = tiny.inputs(1)
    output = tiny.loaded.model.generate(
        input_ids=given["input_ids"], attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=8, do_sample=False,
        pad_token_id=0, **tiny.vision_kwargs(given),
    )  # fmt: skip
    theirs = output[0, prompt.length :].tolist()
    assert ours == theirs[: len(ours)]
    assert len(ours) == len(theirs)
