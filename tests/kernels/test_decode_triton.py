"""Decode attention in Triton's interpreter, which needs no GPU, and what `decode_attention` itself checks and promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from decode_cases import Case, arena_of, query_of

from introspect_kernels import Arena, KernelInputError, UnknownImplementationError, decode_attention

CHECKS = Path(__file__).parent / "interpreted" / "decode_checks_interpreted.py"


def test_in_the_interpreter() -> None:
    # In a process of its own: the interpreter's switch is read when a kernel is decorated.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_tensors_on_a_cpu_are_refused_outside_the_interpreter() -> None:
    case = Case([[4]], 1, 32)
    arena = arena_of(case)
    q, position = query_of(case, arena)
    with pytest.raises(UnknownImplementationError, match=r"'triton' needs tensors on CUDA, got cpu.*TRITON_INTERPRET"):
        decode_attention(q, arena, position, 1.0, impl="triton")


@pytest.mark.parametrize("impl", ["vectorised", "reference", None])
@pytest.mark.parametrize("stats", [True, False])
def test_compiles_as_one_graph(impl: str | None, stats: bool) -> None:
    case = Case([[40, 3], [0, 9]], 2, 32)
    eager, compiled = arena_of(case, received=True), arena_of(case, received=True)
    q, position = query_of(case, eager)

    def step(q: torch.Tensor, arena: Arena) -> tuple[torch.Tensor, ...]:
        out, measured = decode_attention(q, arena, position, 0.2, stats=stats, impl=impl)
        return (out, *measured) if measured is not None else (out,)

    ours = torch.compile(step, backend="aot_eager", fullgraph=True)(q, compiled)
    theirs = step(q, eager)
    assert len(ours) == len(theirs) == (16 if stats else 1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert eager.received is not None
    assert eager.received.sum() > 0
    torch.testing.assert_close(compiled.received, eager.received, rtol=0, atol=0)
    assert torch.equal(compiled.queries, eager.queries)


@pytest.mark.parametrize("impl", ["vectorised", "reference"])
def test_what_entries_receive_adds_up(impl: str) -> None:
    case = Case([[30, 4]], 3, 32)
    arena = arena_of(case, received=True)
    q, position = query_of(case, arena)
    for _ in range(2):
        stats = decode_attention(q, arena, position, 0.2, impl=impl)[1]
    assert stats is not None
    assert arena.received is not None
    assert arena.queries is not None
    own = stats.self_mass[0].view(2, 3).nan_to_num().sum(-1)
    torch.testing.assert_close(arena.received[:30].sum(), 2 * (3 - own[0]))
    torch.testing.assert_close(arena.received[33:37].sum(), 2 * (3 - own[1]))
    assert arena.queries[:30].tolist() == [2] * 29 + [0]


def _broken(**changed: torch.Tensor) -> Arena:
    arena = arena_of(Case([[4, 4]], 2, 32), received=True)
    for name, value in changed.items():
        setattr(arena, name, value)
    return arena


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": torch.tensor([[0, 11]], dtype=torch.int32)}, "within the arena's 14 slots; .* an end at 15"),
        ({"start": torch.tensor([[-1, 7]], dtype=torch.int32)}, "within the arena's 14 slots; got starts from -1"),
        ({"length": torch.tensor([[4, -2]], dtype=torch.int32)}, "entries from -2"),
        ({"length": torch.tensor([[4, 4]])}, r"length must be torch.int32 \(1, 2\) on cpu, got torch.int64"),
        ({"segment": torch.zeros(14, dtype=torch.int32)}, "segment must be torch.uint8"),
        ({"position": torch.zeros(3, dtype=torch.int32)}, r"position must be torch.int32 \(14,\) on cpu, got torch.int32 \(3,\)"),
        ({"v": torch.zeros(14, 16)}, r"v must be torch.float32 \(14, 32\) on cpu, got torch.float32 \(14, 16\)"),
        ({"k": torch.zeros(14, 32, dtype=torch.float16)}, "one floating dtype, got torch.float32, torch.float16"),
        ({"received": torch.zeros(14, dtype=torch.float64)}, "received must be torch.float32"),
        ({"queries": torch.zeros(13, dtype=torch.int32)}, r"queries must be torch.int32 \(14,\)"),
        ({"k": torch.zeros(14, 32, device="meta")}, "the arena's v must be torch.float32 .* on meta, got .* on cpu"),
        ({"length": torch.zeros(1, 2, dtype=torch.int32, device="meta")}, "the arena's length must be .* on cpu, got .* on meta"),
    ],
)
def test_an_arena_that_does_not_fit_is_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        decode_attention(torch.ones(1, 4, 32), _broken(**changed), torch.tensor([9]), 1.0)


def test_a_position_that_is_no_integer_or_lies_elsewhere_is_refused() -> None:
    for position, message in (
        (torch.tensor([True]), "got torch.bool"),
        (torch.zeros(1, dtype=torch.int32, device="meta"), "position on meta"),
    ):
        with pytest.raises(KernelInputError, match=message):
            decode_attention(torch.ones(1, 4, 32), _broken(), position, 1.0)
