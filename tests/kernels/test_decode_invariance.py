"""What the output and the statistics do not depend on, to the bit: batch, order, threads, what is measured, a compiled graph."""

from __future__ import annotations

import pytest
import torch
from ragged_arenas import BRANCHES, assert_close, query, ragged_arena

from introspect_kernels import HeadStats, decode_attention
from introspect_kernels.decode import cpu_threads, vectorised


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
