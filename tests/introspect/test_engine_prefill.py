"""Prefill in chunks: the same result, running answers go on in between, and one layer's cache at a time."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from families import TinyModel

from introspect import prefill_pass
from introspect.chunked import borders
from introspect.engine import Engine
from introspect.loading import load_model
from introspect.prefill_pass import LayerCache, PrefillPass
from introspect.types import Budget, Request, SamplingParams, StepTrace
from introspect_probes.worlds.world import get_world


@pytest.mark.parametrize("budget", [Budget(), Budget("snapkv", entries=20), Budget("keydiff", entries=30)])
def test_chunks_change_nothing(tiny: TinyModel, budget: Budget) -> None:
    prompt = tiny.prompt(3, max_tokens=4, budget=budget)
    whole = list(Engine(tiny.loaded).generate_encoded([prompt]))
    pieces = list(Engine(tiny.loaded, prefill_chunk=7).generate_encoded([prompt]))
    assert len(whole) == len(pieces)
    for a, b in zip(whole, pieces, strict=True):
        if a.logits is not None and b.logits is not None:
            assert b.logits.logprob == pytest.approx(a.logits.logprob, abs=1e-4)
        if a.heads is not None and b.heads is not None:
            np.testing.assert_array_equal(a.heads.retained, b.heads.retained)
            np.testing.assert_allclose(a.heads.lse, b.heads.lse, atol=1e-4)
    np.testing.assert_allclose(whole[0].prompt.retention, pieces[0].prompt.retention, atol=1e-4)


def test_chunks_change_no_token_of_the_embedded_model() -> None:
    loaded = load_model()
    requests = [
        Request.ask(case.id, case.question, case.picture(), context=case.context, sampling=SamplingParams(max_tokens=40))
        for case in get_world("digits").cases(4, seed=5, pool="test")
    ]

    def answers(chunk: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for step in Engine(loaded, prefill_chunk=chunk).generate(requests):
            found.setdefault(step.prompt.request_id, []).append(step.token_id)
        return found

    assert answers(32) == answers(512)


def test_running_answers_go_on_while_a_prompt_is_read(tiny_llava: TinyModel) -> None:
    chunk = 16
    scheduler = Engine(tiny_llava.loaded, prefill_chunk=chunk).scheduler()
    first = scheduler.submit(tiny_llava.prompt(0, max_tokens=40))
    scheduler.step()
    late = tiny_llava.prompt(1, max_tokens=2)
    second = scheduler.submit(late)
    before = 0
    while second.info is None:
        events = scheduler.step()
        assert [event.index for answer, event in events if answer is first and isinstance(event, StepTrace)] == [before + 1]
        before += 1
    assert before == -(-(late.length - 1) // chunk)  # one step of the others for each chunk's way through all layers


def test_a_prompt_can_be_given_up_while_it_is_read(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded, prefill_chunk=16)
    scheduler = engine.scheduler()
    scheduler.submit(tiny_llava.prompt(0, max_tokens=20))
    scheduler.step()
    alone = engine.kv_bytes.owned
    late = scheduler.submit(tiny_llava.prompt(1))
    for _ in range(5):
        scheduler.step()
    assert late.info is None
    assert engine.kv_bytes.owned > alone
    scheduler.cancel(late)
    assert engine.kv_bytes.owned == alone
    assert all("forward" not in layer.__dict__ for layer in tiny_llava.loaded.language_model.layers)  # type: ignore[union-attr]
    while scheduler.has_work:
        scheduler.step()


@pytest.mark.parametrize("chunk", [512, 32])
@pytest.mark.parametrize("policy", ["snapkv", "adakv", "pyramidkv", "keydiff", "adakv-paper"])
def test_one_layers_cache_at_a_time(tiny_llava: TinyModel, monkeypatch: pytest.MonkeyPatch, policy: str, chunk: int) -> None:
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    most, original = 0, PrefillPass.attend

    def watched(self: PrefillPass, *args: object, **kwargs: object) -> torch.Tensor:
        nonlocal most
        out = original(self, *args, **kwargs)  # type: ignore[arg-type]
        most = max(most, sum(ref() is not None for ref in alive))
        return out

    class Noted(LayerCache):
        def __init__(self, *fields: object) -> None:
            super().__init__(*fields)  # type: ignore[arg-type]
            alive.append(weakref.ref(self.k.untyped_storage()))

    monkeypatch.setattr(PrefillPass, "attend", watched)
    monkeypatch.setattr(prefill_pass, "LayerCache", Noted)
    prompt = tiny_llava.prompt(1, max_tokens=1, budget=Budget(policy, entries=24))
    list(Engine(tiny_llava.loaded, prefill_chunk=chunk).generate_encoded([prompt]))
    assert len(alive) == tiny_llava.loaded.num_layers
    if policy.endswith("-paper"):  # those look at all layers before they choose
        assert most >= tiny_llava.loaded.num_layers - 1
    else:
        assert most <= 1


def test_no_chunk_ends_before_a_token_that_is_looked_ahead_at() -> None:
    tokens = 20
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None].clone()
    mask[:, :, 6:13, 6:13] = True  # a picture whose tokens attend to each other
    assert borders(mask, tokens, 4) == [4, 13, 17, 20]
    assert borders(None, tokens, 8) == [8, 16, 20]
    assert borders(torch.ones_like(mask), tokens, 4) == [20]
