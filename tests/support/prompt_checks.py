"""What must hold of the Triton kernels for prompts and moves, in the interpreter (`device="cpu"`) as on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from kernel_cases import Prefill, assert_within_budget, poisoned, prefill, ragged_arena

from introspect_kernels import (
    Arena,
    HeadStats,
    KernelInputError,
    Segment,
    compact,
    compact_into,
    pad_selection,
    rebudget,
    received_attention,
    row_statistics,
    window_scores,
)

INDICES = ("argmax_position", "image_argmax_position", "retained")
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Half precision rounds p before the product with V; what comes of that product may be off by so much."""


def moved(arena: Arena, device: str, dtype: torch.dtype | None = None) -> Arena:
    """The same entries on another device, keys and values in another dtype."""
    found = {f.name: getattr(arena, f.name) for f in fields(Arena)}
    values = {name: value if value is None else value.clone().to(device) for name, value in found.items()}
    return replace(Arena(**values), k=arena.k.to(device, dtype), v=arena.v.to(device, dtype))


def _scores(case: Prefill, **options: object) -> torch.Tensor:
    return window_scores(case.q, case.k, case.scale, rows=case.rows, first=case.first, **options)


def check_scores(case: Prefill, device: str, **options: object) -> None:
    """Window scores within the error budget, nothing left unwritten."""
    exact = _scores(case.to(torch.float64), impl="reference", **options)
    rough = _scores(case, impl="reference", **options)
    with poisoned():
        ours = _scores(case.to(device=device), impl="triton", **options)
    assert_within_budget(ours, exact, rough)


def check_rows(case: Prefill, device: str) -> None:
    """Row statistics within the error budget."""

    def found(case: Prefill, impl: str) -> HeadStats:
        return row_statistics(case.q, case.k, case.v, case.segment, case.scale, rows=case.rows, first=case.first, impl=impl)

    exact, rough = found(case.to(torch.float64), "reference"), found(case, "reference")
    with poisoned():
        ours = found(case.to(device=device), "triton")
    for name in HeadStats._fields:
        value, true = getattr(ours, name).cpu(), getattr(exact, name)
        if name in INDICES:
            assert torch.equal(value, true), name
        elif name == "image_output_share" and case.q.dtype != torch.float32:
            torch.testing.assert_close(value.double(), true, rtol=ROUNDING[case.q.dtype], atol=ROUNDING[case.q.dtype], equal_nan=True)
        else:
            assert_within_budget(value, true, getattr(rough, name), name)


def check_received(arena: Arena, q: torch.Tensor, position: torch.Tensor, device: str, **options: object) -> None:
    """Received attention within the error budget."""
    exact = received_attention(q.double(), moved(arena, "cpu", torch.float64), position, 0.2, impl="reference", **options)
    rough = received_attention(q, arena, position, 0.2, impl="reference", **options)
    with poisoned():
        there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        ours = received_attention(q.to(device), moved(arena, device), position.to(device), 0.2, impl="triton", **there)
    assert_within_budget(ours.sums, exact.sums, rough.sums)
    assert torch.equal(ours.queries.cpu(), exact.queries)


def _span(arena: Arena, heads: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    q = torch.randn(arena.start.shape[0], heads, rows, arena.k.shape[1], generator=generator).to(arena.k.dtype)
    position = torch.stack([torch.randperm(int(arena.position.max()) + rows, generator=generator)[:rows] for _ in arena.start])
    position[0, 0] = -1
    return q, position


def scores_of_every_reduction(device: str) -> None:
    for reduce in ("mean", "sum", "max"):
        check_scores(prefill([65, 1, 0], 2, 3, 16, padding="left", seed=1), device, reduce=reduce)


def scores_of_long_windows_and_odd_heads(device: str) -> None:
    check_scores(prefill([70, 33], 1, 7, 80, window=40, seed=2), device)
    check_scores(prefill([33], 1, 1, 96, seed=3), device, pool=5, pooling="max")


def scores_across_chunks_of_keys(device: str) -> None:
    check_scores(prefill([1090, 3], 1, 1, 16, window=2, seed=4), device)
    late = prefill([1030], 1, 1, 16, window=1, seed=4)  # the second chunk holds the largest score
    late.k[0, 0, 1027] = late.q[0, 0, 0] * 3
    check_scores(late, device)


def scores_at_extremes(device: str) -> None:
    for factor in (0.0, 20.0):
        check_scores(prefill([40], 1, 2, 32, factor=factor, seed=5), device)


def scores_from_a_given_norm(device: str) -> None:
    case = prefill([30], 1, 2, 16, seed=6).to(device=device)
    raw = torch.einsum("bhrd,bhnd->bhrn", case.q, case.k.repeat_interleave(2, 1)) * case.scale
    hidden = torch.arange(30, device=device) > case.rows[0][:, None]
    lse = raw.masked_fill(hidden, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(_scores(case, lse=lse + 1.0, impl="triton") * torch.e, _scores(case, impl="triton"), rtol=1e-4, atol=1e-6)
    other = torch.stack([lse.double()] * 2, -1)[..., 0]
    assert not other.is_contiguous()
    assert torch.equal(_scores(case, lse=other, impl="triton"), _scores(case, lse=lse, impl="triton"))


def scores_of_strided_input(device: str) -> None:
    case = prefill([20], 2, 2, 16, seed=7).to(device=device)
    strided = replace(case, q=case.q.transpose(1, 2).contiguous().transpose(1, 2), k=case.k.transpose(1, 2).contiguous().transpose(1, 2))
    assert not strided.k.is_contiguous()
    assert torch.equal(_scores(strided, impl="triton"), _scores(case, impl="triton"))
    turned = replace(case, k=case.k.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.equal(_scores(turned, impl="triton"), _scores(case, impl="triton"))


def scores_alone_and_beside_others(device: str) -> None:
    for padding in ("left", "right"):
        together = prefill([70, 7, 100], 2, 2, 16, padding=padding, seed=8).to(device=device)
        found = _scores(together, impl="triton")
        for b, length in enumerate([70, 7, 100]):
            own = slice(int(together.first[b]), int(together.first[b]) + length)
            rows = (together.rows[b] - together.first[b])[None]
            k = together.k[b : b + 1, :, own].clone()
            alone = window_scores(together.q[b : b + 1], k, together.scale, rows=rows, impl="triton")
            assert torch.equal(alone[0], found[b, :, own])


def half_precision(device: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = prefill([40, 9], 1, 2, 32, seed=9, dtype=dtype)
        check_scores(case, device)
        check_rows(case, device)
        arena = ragged_arena([[20, 5]], 16, seed=9, dtype=dtype)
        check_received(arena, *_span(arena, 2, 4), device)


def rows_ragged(device: str) -> None:
    check_rows(prefill([65, 3, 0], 2, 3, 80, padding="left", seed=10), device)
    check_rows(prefill([64, 1], 1, 7, 16, padding="right", seed=11), device)


def rows_in_any_order_over_several_blocks(device: str) -> None:
    check_rows(prefill([41], 1, 2, 16, torch.tensor([[*range(40, 19, -1), -1, 0, 39]]), seed=12), device)


def rows_before_and_without_the_image(device: str) -> None:
    case = prefill([72], 1, 2, 16, torch.tensor([[2, 70]]), factor=8.0, seed=13)
    case.segment[:] = int(Segment.QUESTION)
    check_rows(case, device)
    case.segment[0, 5:8] = int(Segment.IMAGE)
    check_rows(case, device)


def rows_of_equal_scores(device: str) -> None:
    """Of equal scores the first entry is the maximum, though later tiles hold as large ones."""
    check_rows(prefill([72], 1, 2, 16, torch.tensor([[70]]), factor=0.0, seed=18), device)


def rows_of_heads_in_two_parts(device: str) -> None:
    """Heads over 128 are multiplied in two parts, the second of them not full here."""
    check_rows(prefill([35], 1, 2, 200, torch.tensor([[34, 3]]), seed=19), device)


def rows_at_extremes_beside_padding(device: str) -> None:
    """Scores of hundreds, in a tile that ends in padding of NaN, with an image to weigh."""
    case = prefill([20, 3], 1, 1, 16, torch.tensor([[19, 7], [2, 1]]), factor=300.0, seed=21)
    case.segment[:, :2] = int(Segment.IMAGE)
    check_rows(case, device)


def rows_whose_previous_key_lies_in_another_tile(device: str) -> None:
    """The own key opens a tile and is the largest: what was summed before is scaled down."""
    case = prefill([40], 1, 1, 16, torch.tensor([[32]]), seed=26)
    case.k[0, 0, 32] = case.q[0, 0, 0] * 2
    check_rows(case, device)


def rows_with_keys_masked_by_minus_infinity(device: str) -> None:
    """Such a key weighs nothing, first, last or between; a row that sees nothing else says nothing."""
    case = prefill([40], 1, 2, 16, torch.tensor([[39, 20, 5]]), seed=20)
    case.q[..., 0], case.k[..., 0] = 1.0, 0.0
    case.k[:, :, [0, 7, 20, 33], 0] = -torch.inf
    check_rows(case, device)
    check_scores(case, device)
    there = replace(case, rows=torch.tensor([[39, 0, -1]])).to(device=device)
    stats = row_statistics(there.q, there.k, there.v, there.segment, there.scale, rows=there.rows, impl="triton")
    assert stats.lse[0].isfinite().tolist() == [[True, True], [False, False], [False, False]]
    assert stats.lse[0, 1].isnan().all()
    assert stats.lse[0, 2].isneginf().all()
    for name in ("entropy", "sum_sq", "max_prob", "mass", "self_mass", "mean_distance", "windowed_distance", "image_max"):
        assert getattr(stats, name)[0, 1:].isnan().all(), name
        assert name == "image_max" or getattr(stats, name)[0, 0].isfinite().all(), name
    assert (stats.argmax_position[0, 1:] == -1).all()


def received_ragged(device: str) -> None:
    arena = ragged_arena([[1, 70], [0, 3]], 16, seed=14)
    q, position = _span(arena, 6, 40)
    check_received(arena, q, position, device)
    check_received(arena, q, position, device, heads=torch.tensor([4, 0, 5]))


def received_from_a_given_norm_and_views(device: str) -> None:
    """A log-sum-exp of another precision and heads that are views: as from plain tensors; and the norm is used."""
    arena = moved(ragged_arena([[12, 7]], 16, seed=25), device)
    q, position = (t.to(device) for t in _span(arena, 4, 5))
    lse = torch.linspace(1, 3, 20, device=device, dtype=torch.float64).view(1, 4, 5)
    plain = received_attention(q, arena, position, 0.2, heads=[3, 0], lse=lse.float(), impl="triton")
    heads = torch.tensor([3, 9, 0, 9], dtype=torch.int32, device=device)[::2]
    strided = torch.stack([lse] * 2, -1)[..., 0]
    found = received_attention(q, arena, position, 0.2, heads=heads, lse=strided, impl="triton")
    assert torch.equal(found.sums, plain.sums)
    shifted = received_attention(q, arena, position, 0.2, heads=[3, 0], lse=lse + 1.0, impl="triton")
    torch.testing.assert_close(shifted.sums * torch.e, plain.sums)
    assert (plain.sums.sum(-1) > 0).all()


def received_self_left_out(device: str) -> None:
    k = torch.zeros(1, 1, 4, 16, device=device)
    arena = Arena.dense(k, k, torch.zeros(1, 4, dtype=torch.uint8, device=device))
    position = torch.tensor([[1, 2, 3]], device=device)
    found = received_attention(torch.zeros(1, 1, 3, 16, device=device), arena, position, 1.0, impl="triton")
    expected = torch.tensor([1 / 2 + 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4, 0.0])
    torch.testing.assert_close(found.sums[0, 0].cpu(), expected)


def compact_like_the_reference(device: str) -> None:
    case = prefill([40, 1, 7], 2, 1, 80, padding="left", seed=15)
    kept = [[torch.arange(c, c + n, step) for c, n, step in zip(case.first.tolist(), (40, 1, 7), (1, 1, 2), strict=True)] for _ in range(2)]
    index, count = pad_selection([list(heads) for heads in zip(*kept, strict=True)])
    count[2, 1] = 0
    for received in (True, False):
        theirs = compact(case.k, case.v, index, count, case.segment, slack=3, first=case.first, received=received, impl="reference")
        there = case.to(device=device)
        k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (there.k, there.v))
        moving = (k, v, index.to(device), count.to(device), there.segment)
        ours = compact(*moving, slack=3, first=there.first, received=received, impl="triton")
        assert_same(ours, theirs)
        if received:
            ours.received.fill_(5.0)
            ours.queries.fill_(5)
            kernel_again = replace(ours, length=torch.zeros_like(ours.length))
            compact_into(kernel_again, *moving, first=there.first, impl="triton")
            used = torch.cat([torch.arange(s, s + n) for s, n in zip(ours.start.flatten().tolist(), count.flatten().tolist(), strict=True)])
            assert (kernel_again.received.cpu()[used] == 0).all()
            assert (kernel_again.queries.cpu()[used] == 0).all()


def rebudget_like_the_reference(device: str) -> None:
    lengths = [[300, 1], [0, 65], [33, 8]]
    for received in (True, False):
        arena = ragged_arena(lengths, 24, seed=16)
        if not received:
            arena.received = arena.queries = None
        generator = torch.Generator().manual_seed(17)
        index, count = pad_selection([[(torch.rand(n, generator=generator) < 0.8).nonzero()[:, 0] for n in heads] for heads in lengths])
        count[2, 1] = -1
        ours = moved(arena, device)
        rebudget(arena, index, count, impl="reference")
        rebudget(ours, index.to(device), count.to(device), impl="triton")
        assert_same(ours, arena)


def compact_few_into_chosen_rows(device: str) -> None:
    """Fewer entries than a block holds, to sequences in another order; and none at all, which empties a run."""
    case = prefill([9, 6], 2, 1, 24, seed=22)
    index, count = pad_selection([[torch.tensor([0, 4]), torch.tensor([1])], [torch.tensor([2, 3, 5]), torch.tensor([0, 1])]])
    there = case.to(device=device)
    for most in (3, 0):
        theirs, chosen, kept = ragged_arena([[4, 4], [2, 3], [5, 1]], 24, seed=23), index[..., :most], count.clamp(max=most)
        ours = moved(theirs, device)
        rows = torch.tensor([2, 0])
        compact_into(theirs, case.k, case.v, chosen, kept, case.segment, rows=rows, impl="reference")
        moving = (there.k, there.v, chosen.to(device), kept.to(device), there.segment)
        compact_into(ours, *moving, rows=rows.to(device), impl="triton")
        assert_same(ours, theirs)
        assert ours.length[2].tolist() == ([2, 1] if most else [0, 0])


def rebudget_to_the_end_of_the_storage(device: str) -> None:
    """Nothing is read or written past the last slot, nor past the last index."""
    arena = ragged_arena([[7], [40]], 24, seed=24, slack=0)
    ours = moved(arena, device)
    index, count = pad_selection([[torch.tensor([0, 6])], [torch.arange(40)]])
    index, count = index.to(torch.int32), count.to(torch.int32)
    rebudget(arena, index, count, impl="reference")
    rebudget(ours, index.to(device), count.to(device), impl="triton")
    assert_same(ours, arena)


def assert_same(ours: Arena, theirs: Arena) -> None:
    """Every tensor bit for bit."""
    for field in fields(Arena):
        torch.testing.assert_close(
            getattr(moved(ours, "cpu"), field.name), getattr(theirs, field.name), rtol=0, atol=0, equal_nan=True, msg=field.name
        )


def what_is_not_built_is_refused(device: str) -> None:
    for case in (prefill([5], 1, 1, 16, dtype=torch.float64), prefill([5], 1, 1, 272)):
        there = case.to(device=device)
        with pytest.raises(KernelInputError, match="bf16, fp16 or fp32 and heads of up to 256"):
            _scores(there, impl="triton")
        with pytest.raises(KernelInputError, match="bf16, fp16 or fp32 and heads of up to 256"):
            row_statistics(there.q, there.k, there.v, there.segment, 1.0, impl="triton")


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        scores_of_every_reduction,
        scores_of_long_windows_and_odd_heads,
        scores_across_chunks_of_keys,
        scores_at_extremes,
        scores_from_a_given_norm,
        scores_of_strided_input,
        scores_alone_and_beside_others,
        half_precision,
        rows_ragged,
        rows_in_any_order_over_several_blocks,
        rows_before_and_without_the_image,
        rows_of_equal_scores,
        rows_of_heads_in_two_parts,
        rows_at_extremes_beside_padding,
        rows_whose_previous_key_lies_in_another_tile,
        rows_with_keys_masked_by_minus_infinity,
        received_ragged,
        received_from_a_given_norm_and_views,
        received_self_left_out,
        compact_like_the_reference,
        rebudget_like_the_reference,
        compact_few_into_chosen_rows,
        rebudget_to_the_end_of_the_storage,
        what_is_not_built_is_refused,
    )
}
