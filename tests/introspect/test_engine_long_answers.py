"""Answers longer than the slack stay within it, by the attention that entries receive."""

from __future__ import annotations

import numpy as np
import torch
from families import TinyModel

from introspect.engine import Engine
from introspect.limits import bytes_of, need_of
from introspect.rebudgeting import most_received
from introspect.types import Budget, StepTrace
from introspect_kernels import Arena


def test_a_long_answer_stays_within_its_budget_and_slack(tiny: TinyModel) -> None:
    slack, tokens = 8, 30
    prompt = tiny.prompt(2, max_tokens=tokens, budget=Budget("snapkv", entries=20))
    engine = Engine(tiny.loaded, slack=slack)
    steps = engine.score_encoded([prompt], [list(range(10, 10 + tokens))])[0]
    budgeted = list(tiny.loaded.budgeted)
    held = np.array([step.heads.retained[budgeted].sum(-1) for step in steps if step.heads is not None])
    assert (held[:slack] == 20 + np.arange(slack)[:, None, None]).all()  # until the slack is full nothing is lost
    assert (held == 20 + (np.arange(tokens + 1) % slack)[:, None, None]).all()  # then each run goes back to what its budget gave it
    assert [step.position for step in steps] == list(range(prompt.length - 1, prompt.length + tokens))
    for step in steps:
        if step.heads is not None:
            assert (step.heads.retained[budgeted][:, :, 0] == 1).all()  # the sink stays
            assert (step.heads.self_mass > 0).all()
    assert steps[0].prompt.budget.effective == 20


def test_a_short_answer_beside_a_long_one_is_untouched(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded, slack=8)
    long, short = (tiny_llava.prompt(n, max_tokens=m, budget=Budget("snapkv", entries=20)) for n, m in ((1, 40), (2, 7)))
    alone = list(engine.generate_encoded([short]))
    scheduler = engine.scheduler()
    promised = bytes_of(tiny_llava.loaded, [need_of(tiny_llava.loaded, p, engine.limits) for p in (long, short)])
    scheduler.submit(long)
    answer = scheduler.submit(short)
    found = []
    while scheduler.has_work:
        found += [step for who, step in scheduler.step() if who is answer and isinstance(step, StepTrace)]
        assert scheduler.kv_bytes.owned <= promised
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.token_id == theirs.token_id
        if ours.heads is not None and theirs.heads is not None:
            np.testing.assert_allclose(ours.heads.lse, theirs.heads.lse, atol=1e-4)


def test_a_whole_cache_is_never_reduced(tiny_llava: TinyModel) -> None:
    prompt = tiny_llava.prompt(1, max_tokens=20)
    steps = Engine(tiny_llava.loaded, slack=4).score_encoded([prompt], [list(range(10, 30))])[0]
    held = [int(step.heads.retained.sum(-1).min()) for step in steps if step.heads is not None]
    assert held == [prompt.length + n for n in range(21)]


def test_the_most_received_the_newest_and_the_first_stay() -> None:
    arena = Arena.empty(torch.tensor([[12, 12]]), 4, torch.float32, received=True)
    for head, entries in enumerate((10, 3)):
        arena.fill(
            0, head, torch.randn(entries, 4), torch.randn(entries, 4), torch.arange(entries), torch.zeros(entries, dtype=torch.uint8)
        )
    assert arena.received is not None
    assert arena.queries is not None
    arena.received[:10] = torch.tensor([0.0, 5, 1, 8, 2, 9, 3, 1, 0, 0])
    arena.queries[:10] = torch.tensor([10, 1, 10, 8, 10, 3, 10, 2, 1, 0])
    index, count = most_received(arena, torch.tensor([[5, 5]]))
    assert count.tolist() == [[5, 3]]  # means: 1 -> 5, 3 -> 1, 5 -> 3, 7 -> 0.5
    assert index[0, 0].tolist() == [0, 1, 3, 5, 9]
    assert index[0, 1, :3].tolist() == [0, 1, 2]
