"""Decode attention on a GPU: the interpreter's checks, and what only a GPU can show."""

from __future__ import annotations

import pytest
import torch
from decode_cases import CASES, Case, arena_of, moved, query_of
from decode_checks import CHECKS, check_case

from introspect_kernels import HeadStats, decode_attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", CASES)
def test_equals_fp64(name: str) -> None:
    check_case(name, "cuda")


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 7, 16])
def test_every_shipped_shape_runs_twice_alike(dtype: torch.dtype, head_dim: int, group: int) -> None:
    case = Case([[1000, 64], [3, 0]], group, head_dim, dtype)
    arena = moved(arena_of(case), "cuda")
    q, position = (t.cuda() for t in query_of(case, moved(arena, "cpu")))
    first, again = (decode_attention(q, arena, position, 0.1, impl="triton") for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first[1] is not None
    assert again[1] is not None
    for name in HeadStats._fields:
        torch.testing.assert_close(getattr(first[1], name), getattr(again[1], name), rtol=0, atol=0, equal_nan=True)


def test_triton_is_the_default_and_one_captured_graph_serves_growing_lengths() -> None:
    case = Case([[300, 20]], 4, 128, torch.bfloat16)
    arena = moved(arena_of(case), "cuda")
    q, position = (t.cuda() for t in query_of(case, moved(arena, "cpu")))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        decode_attention(q, arena, position, 0.1)  # compiles before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, stats = decode_attention(q, arena, position, 0.1)
    assert stats is not None
    for _ in range(3):
        position += 1
        entry = torch.randn(1, 2, 128, device="cuda", dtype=torch.bfloat16)
        arena.append(entry, entry, position, torch.tensor([5], dtype=torch.uint8, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        expected_out, expected = decode_attention(q, arena, position, 0.1, impl="triton")
        assert expected is not None
        assert torch.equal(out, expected_out)
        assert torch.equal(stats.retained, expected.retained)
        assert torch.equal(stats.entropy, expected.entropy)


def test_compiles_as_one_graph() -> None:
    case = Case([[300, 20]], 4, 128, torch.bfloat16)
    arena = moved(arena_of(case), "cuda")
    q, position = (t.cuda() for t in query_of(case, moved(arena, "cpu")))

    def step(q: torch.Tensor) -> torch.Tensor:
        out, stats = decode_attention(q, arena, position, 0.1, impl="triton")
        assert stats is not None
        return out.float().sum() + stats.entropy.sum()

    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(q), step(q), rtol=0, atol=0)
