"""Wrong shapes, dtypes, devices and offsets of the operators beside `decode_attention`: told apart before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import ragged_arena

from introspect_kernels import Arena, KernelInputError, compact, compact_into, rebudget, received_attention, row_statistics, window_scores

ELSEWHERE = "meta"  # another device, and one that no machine lacks


def prompt(**change: object) -> dict[str, object]:
    k = torch.ones(1, 2, 5, 16)
    return {"q": torch.ones(1, 4, 2, 16), "k": k, "scale": 1.0, "rows": torch.tensor([[3, 4]])} | change


def rows_of(**change: object) -> dict[str, object]:
    k = torch.ones(1, 2, 5, 16)
    return prompt(k=k, v=k, segment=torch.zeros(1, 5, dtype=torch.uint8)) | change


def cache(**change: object) -> dict[str, object]:
    k = torch.ones(1, 2, 5, 16)
    chosen = {"index": torch.tensor([[[0, 1], [2, -1]]]), "count": torch.tensor([[2, 1]])}
    return {"k": k, "v": k, **chosen, "segment": torch.zeros(1, 5, dtype=torch.uint8)} | change


PROMPTS = [
    ({"q": torch.ones(1, 4, 16)}, r"q must be \[batch, num_heads, rows, head_dim\] .* got \(1, 4, 16\)"),
    ({"k": torch.ones(2, 2, 5, 16)}, r"got \(1, 4, 2, 16\) and \(2, 2, 5, 16\)"),
    ({"k": torch.ones(1, 0, 5, 16)}, "multiple of num_kv_heads 0, got 4"),
    ({"q": torch.ones(1, 0, 2, 16)}, "multiple of num_kv_heads 2, got 0"),
    (
        {"q": torch.ones(1, 4, 2, 16, dtype=torch.int32), "k": torch.ones(1, 2, 5, 16, dtype=torch.int32)},
        "share a float dtype .* torch.int32",
    ),
    ({"k": torch.ones(1, 2, 5, 16, dtype=torch.bfloat16)}, "got torch.float32 on cpu and torch.bfloat16 on cpu"),
    ({"q": torch.ones(1, 4, 2, 16, device=ELSEWHERE)}, "got torch.float32 on meta and torch.float32 on cpu"),
    ({"rows": torch.tensor([[3, 4]], device=ELSEWHERE)}, r"rows must be integers \(1, 2\) on cpu, got .* on meta"),
    ({"rows": torch.tensor([[True, False]])}, "rows must be integers .* got torch.bool"),
    ({"rows": torch.tensor([[3]])}, r"rows must be integers \(1, 2\) on cpu, got torch.int64 \(1, 1\)"),
    ({"rows": torch.tensor([[-2, 4]])}, r"or be -1, got rows \[-2\]"),
    ({"first": torch.zeros(2, dtype=torch.int32)}, r"first must be integers \(1,\) on cpu, got torch.int32 \(2,\)"),
    ({"first": torch.zeros(1)}, "first must be integers .* got torch.float32"),
    ({"first": torch.zeros(1, dtype=torch.int32, device=ELSEWHERE)}, "first must be integers .* on meta"),
]


@pytest.mark.parametrize(("change", "message"), PROMPTS)
def test_prompts(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        window_scores(**prompt(**change))
    if "k" in change:
        change = change | {"v": change["k"]}
    with pytest.raises(KernelInputError, match=message):
        row_statistics(**rows_of(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lse": torch.ones(1, 4, 2, dtype=torch.int32)}, r"lse must be floats \(1, 4, 2\) on cpu, got torch.int32"),
        ({"lse": torch.ones(1, 4, 2, device=ELSEWHERE)}, "on cpu, got torch.float32 .* on meta"),
        ({"pool": 0}, "odd width .* got 0 and 'mean'"),
        ({"pooling": "median"}, "got 1 and 'median'"),
    ],
)
def test_window_scores(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        window_scores(**prompt(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.ones(1, 2, 5, 16, dtype=torch.float16)}, "v must be like k torch.float32 .* got torch.float16"),
        ({"v": torch.ones(1, 2, 5, 16, device=ELSEWHERE)}, "v must be like k .* on cpu, got .* on meta"),
        ({"segment": torch.zeros(1, 5, dtype=torch.uint8, device=ELSEWHERE)}, r"segment must be uint8 \(1, 5\) on cpu, got .* on meta"),
    ],
)
def test_row_statistics(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        row_statistics(**rows_of(**change))


CACHES = [
    ({"k": torch.ones(2, 5, 16), "v": torch.ones(2, 5, 16)}, r"alike \[batch, num_kv_heads, tokens, head_dim\], got .* \(2, 5, 16\)"),
    ({"v": torch.ones(1, 2, 5, 16, dtype=torch.float16)}, r"got torch.float32 .* and torch.float16"),
    ({"v": torch.ones(1, 2, 5, 16, device=ELSEWHERE)}, "on cpu and .* on meta"),
    ({"count": torch.tensor([[2, 1, 0]])}, r"count must be \(1, 2\), got \(1, 3\)"),
    ({"count": torch.tensor([[2.0, 1.0]])}, "count integers, got torch.int64 .* and torch.float32"),
    ({"count": torch.tensor([[True, False]])}, "and torch.bool"),
    ({"count": torch.tensor([[2, 1]], device=ELSEWHERE)}, "index and count must be on cpu, got cpu and meta"),
    ({"index": torch.zeros(1, 2, 2, dtype=torch.bool)}, "index must be integers .* got torch.bool"),
    ({"index": torch.zeros(1, 3, 2, dtype=torch.int32)}, r"\[1, 2, most\] .* got torch.int32 \(1, 3, 2\)"),
    ({"index": torch.zeros(1, 2, dtype=torch.int32)}, r"got torch.int32 \(1, 2\)"),
    ({"index": torch.zeros(1, 2, 2, dtype=torch.int32, device=ELSEWHERE)}, "must be on cpu, got meta and cpu"),
    ({"segment": torch.zeros(2, 5, dtype=torch.uint8)}, r"segment must be uint8 \(1, 5\) on cpu, got torch.uint8 \(2, 5\)"),
    ({"segment": torch.zeros(1, 5, dtype=torch.uint8, device=ELSEWHERE)}, "segment must be uint8 .* on meta"),
    ({"first": torch.zeros(2, dtype=torch.int32)}, r"first must be integers \[1\] on cpu, got torch.int32 \(2,\)"),
    ({"first": torch.zeros(1, dtype=torch.bool)}, "got torch.bool"),
    ({"first": torch.zeros(1, dtype=torch.int32, device=ELSEWHERE)}, "first must be integers .* on meta"),
    ({"first": torch.tensor([-1])}, r"first must be at least 0, got \[-1\]"),
    ({"index": torch.tensor([[[-1, 1], [2, -1]]])}, r"got -1 at 0 of run \(0, 0\)"),
]


@pytest.mark.parametrize(("change", "message"), CACHES)
def test_compact_and_compact_into(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        compact(**cache(**change), slack=1)
    with pytest.raises(KernelInputError, match=message):
        compact_into(ragged_arena([[4, 3]], 16, seed=1), **cache(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([0, 0])}, r"rows must be integers \[1\] on cpu, got torch.int64 \(2,\)"),
        ({"rows": torch.tensor([False])}, "got torch.bool"),
        ({"rows": torch.zeros(1, dtype=torch.int32, device=ELSEWHERE)}, "rows must be integers .* on meta"),
        ({"rows": torch.tensor([-1])}, r"different sequences of the arena, 0 to 0, got \[-1\]"),
        (
            {name: torch.ones(1, 2, 5, 16, dtype=torch.float16) for name in "kv"},
            "2 KV heads of 16 torch.float32 on cpu, got k torch.float16",
        ),
        (
            {name: torch.ones(1, 1, 5, 16) for name in "kv"} | {"count": torch.tensor([[1]]), "index": torch.tensor([[[0]]])},
            r"got .* \(1, 1, 5",
        ),
    ],
)
def test_compact_into(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        compact_into(ragged_arena([[4, 3]], 16, seed=1), **cache(**change))


def test_two_caches_cannot_go_to_one_sequence() -> None:
    twice = {name: torch.cat([value, value]) for name, value in cache().items()}
    with pytest.raises(KernelInputError, match=r"different sequences of the arena, 0 to 1, got \[1, 1\]"):
        compact_into(ragged_arena([[4, 3], [4, 4]], 16, seed=1), **twice, rows=torch.tensor([1, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": torch.tensor([[2.0, 1.0]])}, "and torch.float32"),
        ({"count": torch.tensor([[3, 1]])}, "count must lie in -1 to 2, the width of index"),
        ({"count": torch.tensor([[2, 1]], device=ELSEWHERE)}, "must be on cpu, got cpu and meta"),
        ({"index": torch.zeros(1, 2, 2, dtype=torch.int32, device=ELSEWHERE)}, "got meta and cpu"),
        ({"index": torch.zeros(1, 2, 2)}, "index must be integers .* got torch.float32"),
        ({"index": torch.tensor([[[1, 0], [2, -1]]])}, r"ascend .* got 0 at 1 of run \(0, 0\)"),
    ],
)
def test_rebudget(change: dict[str, object], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        rebudget(
            ragged_arena([[4, 3]], 16, seed=1), **({"index": torch.tensor([[[0, 1], [2, -1]]]), "count": torch.tensor([[2, 1]])} | change)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 4, 16)}, r"q must be \[1, num_heads, span, 16\], got \(1, 4, 16\)"),
        ({"q": torch.ones(1, 0, 2, 16)}, "multiple of num_kv_heads 2, got 0"),
        ({"q": torch.ones(1, 4, 2, 16, device=ELSEWHERE)}, "on cpu like the arena, got torch.float32 on meta"),
        ({"position": torch.zeros(1, 3, dtype=torch.int32)}, r"position must be integers \(1, 2\) on cpu, got torch.int32 \(1, 3\)"),
        ({"position": torch.zeros(1, 2, dtype=torch.bool)}, "got torch.bool"),
        ({"position": torch.zeros(1, 2, dtype=torch.int32, device=ELSEWHERE)}, "position must be .* on meta"),
        ({"lse": torch.ones(1, 4, 2, dtype=torch.int64)}, "lse must be floats .* got torch.int64"),
        ({"lse": torch.ones(1, 4, 2, device=ELSEWHERE)}, "lse must be floats .* on meta"),
        ({"heads": torch.tensor([[0]])}, r"list of query heads, got torch.int64 \(1, 1\)"),
        ({"heads": [True]}, "list of query heads, got torch.bool"),
        ({"heads": [-1]}, r"heads must lie in 0 to 3, got \[-1\]"),
    ],
)
def test_received_attention(change: dict[str, object], message: str) -> None:
    inputs = {"q": torch.ones(1, 4, 2, 16), "arena": ragged_arena([[4, 3]], 16, seed=1), "position": torch.tensor([[1, 2]]), "scale": 1.0}
    with pytest.raises(KernelInputError, match=message):
        received_attention(**(inputs | change))


ARENAS = [
    ("k", torch.ones(13, 2, 16), r"the arena's k must be floats \[slots, head_dim\] .* got torch.float32 \(13, 2, 16\)"),
    ("k", torch.ones(13, 16, dtype=torch.int32), "the arena's k must be floats .* got torch.int32"),
    ("v", torch.ones(13, 16, dtype=torch.float16), r"the arena's v must be torch.float32 \(13, 16\) on cpu, got torch.float16"),
    ("position", torch.ones(12, dtype=torch.int32), r"the arena's position must be torch.int32 \(13,\) on cpu, got torch.int32 \(12,\)"),
    ("segment", torch.ones(13, dtype=torch.int32), "the arena's segment must be torch.uint8"),
    ("start", torch.zeros(2, dtype=torch.int32), r"start \[batch, num_kv_heads\], got .* and \(2,\)"),
    ("start", torch.zeros(1, 2), "the arena's start must be torch.int32"),
    ("length", torch.zeros(1, 2, dtype=torch.int64), "the arena's length must be torch.int32"),
    ("length", torch.zeros(1, 2, dtype=torch.int32, device=ELSEWHERE), "the arena's length must be .* on cpu, got .* on meta"),
    (
        "capacity",
        torch.zeros(2, 2, dtype=torch.int32),
        r"the arena's capacity must be torch.int32 \(1, 2\) on cpu, got torch.int32 \(2, 2\)",
    ),
    ("received", torch.zeros(13, dtype=torch.float64), "the arena's received must be torch.float32"),
    ("queries", torch.zeros(13, dtype=torch.int64), "the arena's queries must be torch.int32"),
    ("start", torch.tensor([[0, 11]], dtype=torch.int32), "within the arena's 13 slots; .* an end at 1[34]"),
    ("start", torch.tensor([[-1, 5]], dtype=torch.int32), "within the arena's 13 slots; got starts from -1"),
]


def broken(name: str, value: torch.Tensor) -> Arena:
    arena = ragged_arena([[4, 3]], 16, seed=1)
    assert arena.k.shape[0] == 13
    return replace(arena, **{name: value})


@pytest.mark.parametrize(("name", "value", "message"), ARENAS)
def test_arenas(name: str, value: torch.Tensor, message: str) -> None:
    index, count = torch.tensor([[[0, 1, 2], [0, 1, 2]]]), torch.tensor([[3, 3]])
    with pytest.raises(KernelInputError, match=message):
        compact_into(broken(name, value), **cache(index=index, count=count))
    with pytest.raises(KernelInputError, match=message):
        rebudget(broken(name, value), index, count)
    with pytest.raises(KernelInputError, match=message):
        received_attention(torch.ones(1, 4, 2, 16), broken(name, value), torch.tensor([[1, 2]]), 1.0)
