"""What the output and the statistics do not depend on, to the bit: batch, order, threads, what is measured, a compiled graph."""

from __future__ import annotations

import ctypes

import pytest
import torch
from ragged_arenas import BRANCHES, assert_close, query, ragged_arena

from introspect_kernels import HeadStats, decode_attention
from introspect_kernels.decode import cpu_threads, vectorised
from introspect_kernels.decode.cpu_call import FIELDS, NEXT, SOURCE
from introspect_kernels.decode.cpu_entries import source_hash


@pytest.mark.parametrize(("threads", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)], ids=["1", "2", "2-bf16"])
@pytest.mark.parametrize("name", BRANCHES)
def test_not_a_bit_depends_on_batch_order_or_neighbours(name: str, threads: int, dtype: torch.dtype) -> None:
    lengths, group, head_dim = BRANCHES[name]
    arena = ragged_arena(lengths, head_dim, seed=8, dtype=dtype)
    q, position = query(arena, group * len(lengths[0]), seed=9)
    orders = [[row] for row in range(len(lengths))] + [list(range(len(lengths)))[::-1]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for with_stats in (True, False):
            out, stats = decode_attention(q, arena, position, 0.2, stats=with_stats)
            for order in orders:
                part_out, part = decode_attention(q[order], arena.select(torch.tensor(order)), position[order], 0.2, stats=with_stats)
                assert torch.equal(part_out, out[order])
                for field in HeadStats._fields if with_stats else ():
                    torch.testing.assert_close(getattr(part, field), getattr(stats, field)[order], rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ours", [True, False], ids=["torch's-threads", "our-own"])
def test_not_a_bit_depends_on_whose_threads_compute(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = ragged_arena([[4100, 30], [2100, 9]], 32, seed=27)
    q, position = query(arena, 8, seed=28)
    if not ours:
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, worth in ((1, vectorised.WORTH_THREADS), (2, 1), (5, 1)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(vectorised, "WORTH_THREADS", worth)
            results.append(decode_attention(q, arena, position, 0.2))
    finally:
        torch.set_num_threads(before)
    assert_close(arena, q, position)
    (out, stats), *others = results
    for other_out, other in others:
        assert torch.equal(out, other_out)
        for field in HeadStats._fields:
            torch.testing.assert_close(getattr(other, field), getattr(stats, field), rtol=0, atol=0, equal_nan=True)


def test_every_chunk_is_computed_once_and_by_the_sources_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = ragged_arena([[4100, 30], [2100, 0]], 32, seed=46)
    told: list[int] = []

    def watched(work: int, argument: int, threads: int) -> None:
        cpu_threads.in_threads(work, argument, threads)
        told.extend((ctypes.c_int64 * (FIELDS + 4)).from_address(argument))

    monkeypatch.setattr(vectorised, "in_threads", watched)
    monkeypatch.setattr(vectorised, "WORTH_THREADS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        decode_attention(*query(arena, 4, seed=47)[:1], arena, torch.tensor([20_000, 20_000]), 0.2)
    finally:
        torch.set_num_threads(before)
    assert told[FIELDS:] == [5, 1, 3, 1]  # a run without entries is finished as one
    assert told[NEXT] == 10 + 2  # each thread asks once more and finds nothing
    assert told[SOURCE] == source_hash()


@pytest.mark.parametrize(("entries", "threads", "several"), [(20, 2, False), (4100, 1, False), (4100, 2, True)])
def test_only_calls_that_are_worth_it_go_to_threads(entries: int, threads: int, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = ragged_arena([[entries, 30]], 32, seed=48)
    used: list[int] = []

    def watched(work: int, argument: int, threads: int) -> None:
        used.append(threads)
        cpu_threads.in_threads(work, argument, threads)

    monkeypatch.setattr(vectorised, "in_threads", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        decode_attention(*query(arena, 4, seed=49)[:1], arena, torch.tensor([20_000]), 0.2)
    finally:
        torch.set_num_threads(before)
    assert used == ([threads] if several else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_statistics_do_not_change_a_bit_of_the_output(dtype: torch.dtype) -> None:
    arena = ragged_arena([[1100, 30], [7, 2100]], 64, seed=29, dtype=dtype)
    q, position = query(arena, 6, seed=30)
    assert torch.equal(decode_attention(q, arena, position, 0.2)[0], decode_attention(q, arena, position, 0.2, stats=False)[0])


def test_what_was_returned_is_not_written_to_again() -> None:
    arena, other = (ragged_arena([[1100, 30]], 64, seed=seed) for seed in (21, 22))
    q, position = query(arena, 4, seed=23)
    out, stats = decode_attention(q, arena, position, 0.2)
    assert stats is not None
    copies = [value.clone() for value in (out, *stats)]
    with torch.inference_mode():
        decode_attention(q, other, position, 0.2)
    decode_attention(q, other, position, 0.2)
    for value, copy in zip((out, *stats), copies, strict=True):
        torch.testing.assert_close(value, copy, rtol=0, atol=0, equal_nan=True)


def test_compiled_as_one_graph() -> None:
    arena = ragged_arena([[1100, 30], [0, 64]], 64, seed=24)
    q, position = query(arena, 4, seed=25)
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    for with_stats in (True, False):
        out, stats = decode_attention(q, arena, position, 0.2, stats=with_stats)
        other_out, other = compiled(q, arena, position, 0.2, stats=with_stats)
        assert torch.equal(out, other_out)
        assert (stats is None) == (other is None)
        for ours, theirs in zip(stats or (), other or (), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
