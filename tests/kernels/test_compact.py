"""Entries moved into the arena and together within it arrive unchanged, in order, and where they belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import poisoned, prefill, ragged_arena

from introspect_kernels import Arena, KernelInputError, UnknownImplementationError, compact, compact_into, pad_selection, rebudget
from introspect_kernels.errors import ArenaFullError

IMPLEMENTATIONS = ("vectorised", "reference")


def same(ours: Arena, theirs: Arena) -> None:
    for field in fields(Arena):
        torch.testing.assert_close(getattr(ours, field.name), getattr(theirs, field.name), rtol=0, atol=0, equal_nan=True)


def copied(arena: Arena) -> Arena:
    return Arena(*(value if value is None else value.clone() for value in (getattr(arena, f.name) for f in fields(Arena))))


def choice(lengths: list[list[int]], seed: int, share: float = 0.5) -> list[list[torch.Tensor]]:
    """Some ascending entries of each run, of at most its length."""
    generator = torch.Generator().manual_seed(seed)
    return [[(torch.rand(n, generator=generator) < share).nonzero()[:, 0] for n in heads] for heads in lengths]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_kept_entries_arrive_where_they_belong(impl: str, padding: str) -> None:
    lengths = [40, 1, 7]
    case = prefill(lengths, 2, 1, 80, padding=padding, seed=1)
    kept = choice([[n, n] for n in lengths], seed=2)
    kept[2][1] = torch.tensor([], dtype=torch.int64)
    at = [[entries + case.first[b] for entries in heads] for b, heads in enumerate(kept)]
    index, count = pad_selection(at)
    with poisoned():
        arena = compact(case.k, case.v, index, count, case.segment, slack=3, first=case.first, received=True, impl=impl)
    assert arena.length.tolist() == [[len(entries) for entries in heads] for heads in kept]
    assert (arena.capacity - arena.length == 3).all()
    for b, heads in enumerate(kept):
        for head, entries in enumerate(heads):
            run = slice(int(arena.start[b, head]), int(arena.start[b, head]) + len(entries))
            assert arena.position[run].tolist() == entries.tolist()
            assert torch.equal(arena.k[run], case.k[b, head, at[b][head]])
            assert torch.equal(arena.v[run], case.v[b, head, at[b][head]])
            assert torch.equal(arena.segment[run], case.segment[b, at[b][head]])
    assert arena.k.isfinite().all()
    assert arena.received is not None
    assert (arena.received == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_several_caches_into_one_arena(impl: str) -> None:
    arena = ragged_arena([[4, 4], [2, 3], [5, 1]], 16, seed=3)
    before = copied(arena)
    case = prefill([9, 6], 2, 1, 16, seed=4)
    index, count = pad_selection([[torch.tensor([0, 4]), torch.tensor([1])], [torch.tensor([2, 3, 5]), torch.tensor([0, 1])]])
    compact_into(arena, case.k, case.v, index, count, case.segment, rows=torch.tensor([2, 0]), impl=impl)
    assert arena.length.tolist() == [[3, 2], [2, 3], [2, 1]]
    first = int(arena.start[2, 0])
    assert torch.equal(arena.k[first : first + 2], case.k[0, 0, [0, 4]])
    assert arena.received is not None
    assert arena.received[first : first + 2].tolist() == [0.0, 0.0]
    untouched = slice(int(arena.start[1, 0]), int(arena.start[2, 0]))
    torch.testing.assert_close(arena.k[untouched], before.k[untouched], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("received", [True, False], ids=["with-received", "without"])
def test_rebudget_moves_everything_that_belongs_to_an_entry(impl: str, received: bool) -> None:
    lengths = [[90, 1], [0, 65], [33, 8]]
    arena = ragged_arena(lengths, 24, seed=5)
    if not received:
        arena.received = arena.queries = None
    kept = choice(lengths, seed=6, share=0.7)
    index, count = pad_selection(kept)
    count[2, 1] = -1
    before, storage = copied(arena), arena.k.data_ptr()
    rebudget(arena, index, count, impl=impl)
    assert arena.k.data_ptr() == storage
    assert arena.length[2, 1] == 8
    kept[2][1] = torch.arange(8)
    for b, heads in enumerate(kept):
        for head, entries in enumerate(heads):
            assert arena.length[b, head] == len(entries)
            start = int(arena.start[b, head])
            for name in ("k", "v", "position", "segment", *(("received", "queries") if received else ())):
                ours, old = getattr(arena, name), getattr(before, name)
                assert torch.equal(ours[start : start + len(entries)], old[start + entries]), name


@settings(max_examples=30)
@given(
    lengths=st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=2), min_size=1, max_size=3),
    share=st.floats(0, 1),
    seed=st.integers(0, 9999),
)
def test_rebudget_twice_is_rebudget_once(lengths: list[list[int]], share: float, seed: int) -> None:
    arena = ragged_arena(lengths, 8, seed)
    twice, once = copied(arena), copied(arena)
    first = choice(lengths, seed, share)
    second = choice([[len(entries) for entries in heads] for heads in first], seed + 1, share)
    rebudget(twice, *pad_selection(first))
    rebudget(twice, *pad_selection(second))
    rebudget(once, *pad_selection([[a[b] for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]))
    assert torch.equal(twice.length, once.length)
    for ours, theirs in zip(twice.gather(), once.gather(), strict=True):
        valid = twice.gather()[4]
        assert torch.equal(ours[valid], theirs[valid])


def test_in_a_compiled_graph() -> None:
    case = prefill([9, 6], 2, 1, 16, seed=7)
    index, count = pad_selection([[torch.tensor([0, 4]), torch.tensor([1])], [torch.tensor([2, 3, 5]), torch.tensor([0, 1])]])
    keep, number = pad_selection([[torch.tensor([1]), torch.tensor([0])], [torch.tensor([0, 2]), torch.tensor([1])]])
    eager, graph = (Arena.empty(count + 1, 16, torch.float32, received=True) for _ in range(2))

    def move(arena: Arena) -> None:
        compact_into(arena, case.k, case.v, index, count, case.segment)
        rebudget(arena, keep, number)

    move(eager)
    torch.compile(move, fullgraph=True, backend="aot_eager")(graph)
    same(graph, eager)
    assert graph.length.tolist() == [[1, 1], [2, 1]]


def into(arena: Arena, **change: object) -> None:
    inputs = {
        "k": torch.ones(1, 2, 5, 16),
        "v": torch.ones(1, 2, 5, 16),
        "index": torch.tensor([[[0, 1], [2, -1]]]),
        "count": torch.tensor([[2, 1]]),
        "segment": torch.zeros(1, 5, dtype=torch.uint8),
    }
    compact_into(arena, **(inputs | change))


def again(arena: Arena, **change: object) -> None:
    rebudget(arena, **({"index": torch.tensor([[[0, 1], [2, -1]]]), "count": torch.tensor([[2, 1]])} | change))


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (into, {"v": torch.ones(1, 2, 4, 16)}, r"k and v must be alike .* got .* \(1, 2, 4, 16\)"),
        (into, {"k": torch.ones(1, 2, 5, 8), "v": torch.ones(1, 2, 5, 8)}, r"2 KV heads of 16 torch.float32 on cpu, got .* \(1, 2, 5, 8\)"),
        (into, {"count": torch.tensor([2, 1])}, r"count must be \(1, 2\), got \(2,\)"),
        (into, {"index": torch.zeros(1, 2, 2)}, r"index must be integers \[1, 2, most\] .* got torch.float32"),
        (into, {"index": torch.tensor([[[1, 1], [2, 0]]])}, r"ascend within the 5 entries of each run, got 1 at 1 of run \(0, 0\)"),
        (into, {"index": torch.tensor([[[1, 5], [2, 0]]])}, r"got 5 at 1 of run \(0, 0\)"),
        (into, {"first": torch.tensor([1])}, r"got 0 at 0 of run \(0, 0\)"),
        (into, {"first": torch.tensor([1.0])}, r"first must be integers \[1\] on cpu, got torch.float32"),
        (into, {"count": torch.tensor([[3, 1]])}, r"count must lie in 0 to 2, the width of index, got \[\[3, 1\]\]"),
        (into, {"count": torch.tensor([[-1, 1]])}, "count must lie in 0 to 2"),
        (into, {"segment": torch.zeros(1, 5)}, r"segment must be uint8 \(1, 5\) on cpu, got torch.float32"),
        (into, {"rows": torch.tensor([1])}, r"different sequences of the arena, 0 to 0, got \[1\]"),
        (into, {"rows": torch.tensor([0.0])}, r"rows must be integers \[1\]"),
        (again, {"count": torch.tensor([2, 1])}, r"count must be \(1, 2\), got \(2,\)"),
        (again, {"count": torch.tensor([[-2, 1]])}, "count must lie in -1 to 2"),
        (again, {"index": torch.tensor([[[0, 1], [3, -1]]])}, r"within the 3 entries of each run, got 3 at 0 of run \(0, 1\)"),
    ],
)
def test_wrong_inputs_change_nothing_and_are_told_apart(call: Callable[..., None], change: dict[str, object], message: str) -> None:
    arena = ragged_arena([[4, 3]], 16, seed=8)
    before = copied(arena)
    with pytest.raises(KernelInputError, match=message):
        call(arena, **change)
    same(arena, before)


def test_no_more_than_fits() -> None:
    arena = Arena.empty(torch.tensor([[1, 3]]), 16, torch.float32)
    with pytest.raises(ArenaFullError, match=r"capacity \[\[1, 3\]\], got \[\[2, 1\]\]"):
        into(arena)
    with pytest.raises(KernelInputError, match="slack must be at least 0, got -1"):
        compact(*[torch.ones(1, 2, 5, 16)] * 2, *pad_selection([[torch.tensor([0])] * 2]), torch.zeros(1, 5, dtype=torch.uint8), slack=-1)
    with pytest.raises(UnknownImplementationError, match="got 'cuda'"):
        into(Arena.empty(torch.tensor([[3, 3]]), 16, torch.float32), impl="cuda")
