"""Checks of `impl="triton"` that run in Triton's interpreter and on a GPU alike; each takes the device to run on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from decode_cases import CASES, Case, arena_of, assert_equals_fp64, moved, query_of

from introspect_kernels import NUM_SEGMENTS, Arena, HeadStats, Segment, decode_attention


@contextmanager
def poisoned_memory(value: float = torch.nan) -> Iterator[None]:
    """Memory that `torch.empty` hands out is NaN, or a negative number no index survives."""
    plain = {"empty": torch.empty, "empty_like": torch.empty_like}

    def poison(name: str) -> Any:
        def make(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = plain[name](*args, **kwargs)
            return tensor.fill_(value if tensor.is_floating_point() else -12345)

        return make

    with mock.patch.multiple(torch, empty=poison("empty"), empty_like=poison("empty_like")):
        yield


def measure(arena: Arena, q: torch.Tensor, position: torch.Tensor, device: str, scale: float = 0.2) -> tuple[torch.Tensor, HeadStats]:
    """Output and statistics of Triton, on a CPU again."""
    out, stats = decode_attention(q.to(device), moved(arena, device), position.to(device), scale, impl="triton")
    assert stats is not None
    return out.cpu(), HeadStats(*(value.cpu() for value in stats))


def check_case(name: str, device: str) -> None:
    """One case against fp64, in poisoned memory."""
    with poisoned_memory():
        assert_equals_fp64(CASES[name], device)


def check_all_scores_equal(device: str) -> None:
    """Equal scores: entropy and lse are the log of the count, and the first entry is the maximum."""
    case = CASES["all-scores-equal"]
    arena = arena_of(case)
    _, stats = measure(arena, *query_of(case, arena), device)
    expected = torch.log(torch.tensor([290.0, 290.0, 11.0, 11.0]))
    torch.testing.assert_close(stats.entropy[0], expected)
    torch.testing.assert_close(stats.lse[0], expected)
    assert stats.argmax_position[0, 0] == arena.position[0]


def check_alone_in_any_order_and_among_neighbours(device: str) -> None:
    """Bitwise the same in a batch, alone, and in another order."""
    case = Case([[300, 5], [90, 2], [12, 270]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    out, stats = measure(arena, q, position, device)
    for rows in ([0], [1], [2], [2, 0, 1]):
        part_out, part = measure(arena.select(torch.tensor(rows)), q[rows], position[rows], device)
        assert torch.equal(part_out, out[rows])
        for name in HeadStats._fields:
            torch.testing.assert_close(getattr(part, name), getattr(stats, name)[rows], rtol=0, atol=0, equal_nan=True)


def check_neither_neighbours_nor_memory_show(device: str) -> None:
    """What other sequences hold does not reach a sequence: not one bit, though all of it changes."""
    case = Case([[40, 5], [90, 2]], 2, 32)
    arena, other = arena_of(case), arena_of(case)
    q, position = query_of(case, arena)
    first = int(arena.start[1, 0])
    other.k[first:], other.v[first:] = 100.0, -100.0
    ours, theirs = (measure(a, q, position, device) for a in (arena, other))
    assert torch.equal(ours[0][0], theirs[0][0])
    assert not torch.equal(ours[0][1], theirs[0][1])
    for name in HeadStats._fields:
        torch.testing.assert_close(getattr(ours[1], name)[0], getattr(theirs[1], name)[0], rtol=0, atol=0, equal_nan=True)


def check_the_maximum_in_a_late_piece(device: str) -> None:
    """Pieces are merged 32 at a time: here the largest score, and the image's, lie beyond those."""
    arena = arena_of(CASES["more-pieces-than-are-merged-at-a-time"])
    arena.k[1499], arena.k[1496] = 2.0, 1.0
    _, stats = measure(arena, torch.ones(1, 1, 32), arena.position[1499:1500], device)
    assert stats.argmax_position.item() == arena.position[1499]
    assert stats.image_argmax_position.item() == arena.position[1496]


def check_what_memory_held_before_does_not_show(device: str) -> None:
    """A maximum passes over NaN: so the rows of pieces that do not exist hold a large number here."""
    case = Case([[40, 5], [0, 2]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    expected_out, expected = measure(arena, q, position, device)
    with poisoned_memory(1e30):
        out, stats = measure(arena, q, position, device)
    assert torch.equal(out, expected_out)
    for name in HeadStats._fields:
        torch.testing.assert_close(getattr(stats, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


def check_without_statistics(device: str) -> None:
    """The output is the same to rounding, and no statistics come back."""
    case = Case([[300, 5], [0, 33]], 4, 48)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    with poisoned_memory():
        out, stats = decode_attention(q.to(device), moved(arena, device), position.to(device), 0.2, stats=False, impl="triton")
    assert stats is None
    torch.testing.assert_close(out.cpu(), measure(arena, q, position, device)[0], rtol=1e-5, atol=1e-6)


def check_received(device: str) -> None:
    """Two steps, the second without statistics, against the reference's sums in fp64; the query's own entry gets nothing."""
    case = Case([[300, 5], [0, 33]], 3, 32)
    arena = moved(arena_of(case, received=True), device)
    exact = moved(arena_of(case, received=True), "cpu", torch.float64)
    for step in range(2):
        q, position = query_of(case, exact, seed=step)
        decode_attention(q.to(device), arena, position.to(device), 0.3, stats=step == 0, impl="triton")
        decode_attention(q.double(), exact, position, 0.3, impl="reference")
    assert arena.received is not None
    assert arena.queries is not None
    assert exact.received is not None
    torch.testing.assert_close(arena.received.cpu(), exact.received, rtol=1e-5, atol=1e-6)
    assert torch.equal(arena.queries.cpu(), exact.queries)
    start, length = (int(x[1, 1]) for x in (exact.start, exact.length))
    assert arena.queries[start : start + length].tolist() == [2] * (length - 1) + [
        0 if position[1] == exact.position[start + length - 1] else 2
    ]
    assert arena.queries[int(exact.start[0, 0]) + 300] == 0


def check_what_cannot_be_accounted_for(device: str) -> None:
    """A segment that does not exist, an entry after the query: everything of that run is absent, its neighbour untouched."""
    case = Case([[40, 20]], 2, 32)
    for broken in ("segment", "position"):
        arena = arena_of(case)
        q, position = query_of(case, arena)
        expected_out, expected = measure(arena, q, position, device)
        if broken == "segment":
            arena.segment[7] = 6
        else:
            arena.position[39] = int(position[0]) + 1
        out, stats = measure(arena, q, position, device)
        assert out[0, :2].isnan().all()
        assert torch.equal(out[0, 2:], expected_out[0, 2:])
        for name in HeadStats._fields:
            value, whole = getattr(stats, name)[0], getattr(expected, name)[0]
            half = len(value) // 2
            lost = value[:half]
            assert (lost.isnan() if lost.is_floating_point() else lost == -1).all(), name
            torch.testing.assert_close(value[half:], whole[half:], rtol=0, atol=0, equal_nan=True)


def check_runs_that_overlap(device: str) -> None:
    """More entries than slots: the work list is full, and what does not fit is absent instead of wrong."""
    case = Case([[600]], 1, 32)
    arena = arena_of(case, received=True)
    q, position = query_of(case, arena)
    rows = torch.zeros(6, dtype=torch.long)
    out, stats = measure(arena.select(rows), q[rows], position[rows], device)
    expected = measure(arena, q, position, device)[0]
    complete = ~stats.lse.isnan()[:, 0]
    assert complete.any()
    assert not complete.all()
    assert torch.equal(out[complete], expected.expand(6, -1, -1)[complete])
    assert out[~complete].isnan().all()


def check_absent_values(device: str) -> None:
    """No image entry, no entry at the query's position nor before it: absent, not zero."""
    case = Case([[4]], 1, 32)
    arena = arena_of(case)
    arena.segment[:4] = int(Segment.QUESTION)
    arena.position[:4] = torch.tensor([0, 3, 5, 9])
    _, stats = measure(arena, torch.ones(1, 1, 32), torch.tensor([11]), device)
    for name in ("image_entropy", "image_max", "image_output_share", "self_mass", "previous_mass"):
        assert getattr(stats, name).isnan().all(), name
    assert stats.image_argmax_position.item() == -1
    assert stats.mass[0, 0, Segment.IMAGE] == 0
    _, at_nine = measure(arena, torch.ones(1, 1, 32), torch.tensor([9]), device)
    assert at_nine.self_mass.item() > 0
    assert at_nine.previous_mass.isnan().all()
    _, at_ten = measure(arena, torch.ones(1, 1, 32), torch.tensor([10]), device)
    assert at_ten.previous_mass.item() == at_nine.self_mass.item()
    early = arena_of(Case([[1]], 1, 32))
    early.position[0] = 1
    _, at_one = measure(early, torch.ones(1, 1, 32), torch.tensor([1]), device)
    assert at_one.self_mass.item() == 1
    assert at_one.previous_mass.isnan().all()


def check_the_work_list(device: str) -> None:
    """Chunks of 256, 512 or 1024 entries as runs grow, each cut where segments begin and end."""
    check_plan(Case([[4096, 4097], [8192, 8193], [0, 300]], 1, 2), device)


def check_a_work_list_that_is_full(device: str) -> None:
    """As many chunks as there can be: nothing is written past the last one's pieces."""
    case = Case([[257]], 1, 2, alternating=True)
    launch = check_plan(case, device)
    assert launch.run_chunk.tolist()[-1] == launch.chunks


def check_plan(case: Case, device: str) -> Any:
    """The work list of a case, one of whose runs has alternating segments, against one made in plain torch."""
    from introspect_kernels.decode.triton_host import _Launch  # needs Triton, which this module's other checks ask for by name

    arena = arena_of(case)
    first = case.lengths[0][0]
    arena.segment[:first] = torch.arange(first) % NUM_SEGMENTS
    q = torch.zeros(len(case.lengths), len(case.lengths[0]), 2, device=device)
    launch = _Launch(q, moved(arena, device), torch.zeros(len(q), dtype=torch.int32, device=device), 1.0, True)
    with poisoned_memory():
        launch.plan()
    expected, starts = [], [0]
    for run, (start, count) in enumerate(zip(arena.start.flatten().tolist(), arena.length.flatten().tolist(), strict=True)):
        step = 256 if count <= 4096 else 512 if count <= 8192 else 1024
        for low in range(0, count, step):
            kinds = arena.segment[start + low : start + min(low + step, count)]
            at = [(kind, (kinds == kind).nonzero()[:, 0]) for kind in kinds.unique().tolist()]
            expected.append((run, [(low + int(found[0]), low + int(found[-1]) + 1, len(found), kind) for kind, found in at]))
        starts.append(len(expected))
    assert launch.run_chunk.tolist() == starts
    assert len(expected) <= launch.chunks
    low, high, count, kind = (tensor.view(-1, NUM_SEGMENTS).tolist() for tensor in launch.pieces)
    for chunk, (run, pieces) in enumerate(expected):
        assert launch.chunk_run[chunk] == run
        assert launch.chunk_pieces[chunk] == len(pieces)
        found = list(zip(low[chunk], high[chunk], count[chunk], kind[chunk], strict=True))
        assert found[: len(pieces)] == pieces
        assert count[chunk][len(pieces) :] == [0] * (NUM_SEGMENTS - len(pieces))
    return launch


def check_strided_inputs(device: str) -> None:
    """A query that is a view, and a position of int64: bitwise the same."""
    case = Case([[40, 5], [9, 2]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    expected_out, expected = measure(arena, q, position, device)
    strided = q.to(device).transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    out, stats = decode_attention(strided, moved(arena, device), position.to(device).long(), 0.2, impl="triton")
    assert torch.equal(out.cpu(), expected_out)
    assert stats is not None
    for name in HeadStats._fields:
        torch.testing.assert_close(getattr(stats, name).cpu(), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


def check_entries_masked_with_minus_infinity(device: str) -> None:
    """They weigh nothing: all but the counts are as if they were not there. Where every entry is masked nothing is claimed."""
    case = Case([[40, 5]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    q[..., 0] = 1.0
    arena.k[:45, 0] = 0.0
    arena.k[3:37:2, 0] = -torch.inf  # of the first run; its last entries stay
    arena.k[43:48, 0] = -torch.inf  # all of the second
    exact = decode_attention(q.double(), moved(arena, "cpu", torch.float64), position, 0.2, impl="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of the interpreter's products with infinity
        out, stats = measure(arena, q, position, device)
    torch.testing.assert_close(out[0, :2].double(), exact[0][0, :2], rtol=1e-5, atol=1e-5)
    assert exact[1] is not None
    for name in HeadStats._fields:
        half = getattr(stats, name).shape[1] // 2
        ours, theirs = (getattr(s, name)[0, :half].double() for s in (stats, exact[1]))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert out[0, 2:].isnan().all()
    for name in set(HeadStats._fields) - {"retained"}:
        lost = getattr(stats, name)[0, 2:]
        assert (lost.isnan() if lost.is_floating_point() else lost == -1).all(), name


def check_nothing_is_read_past_the_end(device: str) -> None:
    """Heads that fill no tile, in runs that end where the memory does."""
    generator = torch.Generator().manual_seed(5)
    k, v = torch.randn(2, 1, 2, 5, 48, generator=generator)
    arena = Arena.dense(k, v, torch.zeros(1, 5, dtype=torch.uint8))
    q, position = torch.randn(1, 4, 48, generator=generator), torch.tensor([4])
    out, _ = measure(arena, q, position, device)
    torch.testing.assert_close(out, decode_attention(q, arena, position, 0.2, impl="reference")[0], rtol=1e-5, atol=1e-6)


def check_no_sequences(device: str) -> None:
    """An empty batch has an empty output."""
    case = Case([[4, 3]], 2, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    none = torch.tensor([], dtype=torch.long)
    out, stats = decode_attention(q[none].to(device), moved(arena.select(none), device), position[none].to(device), 0.2, impl="triton")
    assert out.shape == (0, 4, 32)
    assert stats is not None
    assert stats.mass.shape == (0, 4, NUM_SEGMENTS)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name not in ("check_case", "check_plan")
}
