"""What a captured CUDA graph needs of the host: nothing is read from the device, so that lengths may change under it.

On a machine without a GPU the host's code runs on tensors without storage, where reading a value is an error, and its launches are
recorded. `TRITON_INTERPRET` only lets it past the refusal of tensors that are not on CUDA: no kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from introspect_kernels import Arena, decode_attention
from introspect_kernels.bench.compiled import launches_of
from introspect_kernels.decode import triton_host
from introspect_kernels.decode.triton_plan import max_chunks

NO_WORK = {
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::unbind",
    "aten::detach",
    "aten::select",
    "aten::view",
    "aten::alias",
}
"""Memory and views of it; neither copies to the host nor kernels of torch's."""


class Operations(TorchDispatchMode):
    """Names of the operations that reach torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: object, types: object, args: object = (), kwargs: object = None) -> object:
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def arena(*, received: bool, slots: int = 640) -> Arena:
    runs = torch.empty(2, 4, dtype=torch.int32, device="meta")
    k = torch.empty(slots, 64, dtype=torch.bfloat16, device="meta")
    integers = torch.empty(slots, dtype=torch.int32, device="meta")
    segment = torch.empty(slots, dtype=torch.uint8, device="meta")
    sums = (torch.empty(slots, device="meta"), integers) if received else (None, None)
    return Arena(k, k, integers, segment, runs, runs, runs, *sums)


def step(*, stats: bool, received: bool) -> Callable[[], object]:
    q = torch.empty(2, 8, 64, dtype=torch.bfloat16, device="meta")
    position = torch.empty(2, dtype=torch.int32, device="meta")
    return lambda: decode_attention(q, arena(received=received), position, 0.1, stats=stats, impl="triton")


@pytest.fixture(autouse=True)
def _past_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("stats", [True, False])
@pytest.mark.parametrize("received", [True, False])
def test_a_step_reads_nothing_and_runs_nothing_but_its_kernels(stats: bool, received: bool) -> None:
    call = step(stats=stats, received=received)
    with Operations() as operations:
        launches = launches_of(call)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["plan_kernel", "attend_kernel", "combine_kernel", *(["received_kernel"] if received else [])]
    assert operations.names <= NO_WORK


def test_without_statistics_a_chunk_is_one_piece() -> None:
    for stats, pieces in ((True, 6), (False, 1)):
        launches = launches_of(step(stats=stats, received=False))
        assert {launch.arguments["PIECES"] for launch in launches} == {pieces}


def test_positions_are_integers_of_one_size_whatever_the_caller_has() -> None:
    q, position = torch.empty(2, 8, 64, dtype=torch.bfloat16, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    launches = launches_of(lambda: decode_attention(q, arena(received=True), position, 0.1, impl="triton"))
    asked = [launch.arguments["query_position"].dtype for launch in launches if "query_position" in launch.arguments]
    assert asked == [torch.int32] * 3  # another type would be another kernel to compile


def test_the_work_list_has_room_and_little_more() -> None:
    for count in (0, 1, 256, 257, 4096, 4097, 8192, 8193, 100_000):
        step = 256 if count <= 4096 else 512 if count <= 8192 else 1024
        assert max_chunks(3 * count, 3) >= 3 * -(-count // step)
    assert max_chunks(100_000, 1) <= 16 + 100_000 // 1024  # one run's: not what it would need in chunks of 256


def test_an_empty_batch_can_be_compiled() -> None:
    none = arena(received=False).select(torch.empty(0, dtype=torch.long, device="meta"))
    q, position = torch.empty(0, 8, 64, dtype=torch.bfloat16, device="meta"), torch.empty(0, dtype=torch.int32, device="meta")
    plan = launches_of(lambda: decode_attention(q, none, position, 0.1, impl="triton"))[0]
    assert plan.arguments["RUNS_PAD"] == 1  # a range of nothing is none that Triton knows


@pytest.mark.parametrize(
    "reading",
    [
        lambda a: int(a.length.max()),
        lambda a: a.length.sum().item(),
        lambda a: a.start.tolist(),
        lambda a: bool((a.length > 0).any()),
        lambda a: a.length.nonzero(),
        lambda a: a.length.cpu(),
        lambda a: a.length[a.length > 0],
    ],
    ids=["int", "item", "tolist", "bool", "nonzero", "cpu", "mask"],
)
def test_a_host_that_read_would_be_noticed(reading: Callable[[Arena], object]) -> None:
    plan = triton_host._Launch.plan

    def reads(launch: triton_host._Launch) -> None:
        reading(launch.arena)
        plan(launch)

    refused = False
    call = step(stats=True, received=False)
    with mock.patch.object(triton_host._Launch, "plan", reads), Operations() as operations:
        try:
            launches_of(call)
        except (RuntimeError, NotImplementedError) as error:
            refused = "meta" in str(error)
    assert refused or not operations.names <= NO_WORK
