"""The benchmark's own parts: what it refuses to time, what its row holds, and that its rivals compute the same."""

from __future__ import annotations

import json

import pytest
import torch

from introspect_kernels import KernelError, decode_attention, decode_attention_packed
from introspect_kernels.bench import cpu, first_call, gpu, markdown, rivals
from introspect_kernels.bench.gate import GateError, check, check_packed
from introspect_kernels.bench.problems import DTYPES, EMBEDDED, LLAVA_7B, QWEN_7B, Problem, Shape, make, segments
from introspect_kernels.bench.rows import cpu_row, gpu_row
from introspect_kernels.bench.timing import interleaved, median_ratio

SMALL = Shape("small", 6, 2, 16)


def test_the_gate_lets_what_is_right_through() -> None:
    for dtype in DTYPES:
        found = check(make(Problem(SMALL, 2, 40, dtype)))
        assert {"out", "out without statistics", "lse", "entropy", "mass"} <= set(found)
        assert max(found.values()) <= 1


@pytest.mark.parametrize("name", ["lse", "sum_sq", "mass", "image_output_share", "argmax_position", "retained"])
def test_the_gate_refuses_a_wrong_statistic(name: str) -> None:
    def broken(*arguments: object, stats: bool) -> object:
        out, found = decode_attention(*arguments, stats=stats)
        return out, found and found._replace(**{name: getattr(found, name) + (1e-3 if getattr(found, name).is_floating_point() else 1)})

    with pytest.raises(GateError, match=name):
        check(make(Problem(SMALL, 2, 40, "fp32")), broken)


@pytest.mark.parametrize("wrong_with", [True, False], ids=["with-statistics", "without"])
def test_the_gate_refuses_a_wrong_output(wrong_with: bool) -> None:
    def broken(*arguments: object, stats: bool) -> object:
        out, found = decode_attention(*arguments, stats=stats)
        return out * 1.01 if stats == wrong_with else out, found

    with pytest.raises(GateError, match="out" if wrong_with else "out without statistics"):
        check(make(Problem(SMALL, 1, 40, "fp32")), broken)


@pytest.mark.parametrize("what", ["out", "out without statistics", "mass", "argmax_position"])
def test_the_gate_refuses_packed_statistics_that_are_not_those_of_the_fields(what: str) -> None:
    def broken(*arguments: object) -> object:
        out, found = decode_attention_packed(*arguments)
        if what == ("out" if found else "out without statistics"):
            return out * 1.01, found
        if found and what in {"mass", "argmax_position"}:
            found = found._replace(**{"mass": {"mass": found.mass * 1.01}, "argmax_position": {"indices": found.indices + 1}}[what])
        return out, found

    inputs = make(Problem(SMALL, 2, 40, "fp32"))
    check_packed(inputs)
    with pytest.raises(GateError, match=f"^{what}: packed statistics and fields differ"):
        check_packed(inputs, broken)


def test_a_wrong_implementation_is_never_timed() -> None:
    calls = []

    def broken(*arguments: object, stats: bool) -> object:
        calls.append(stats)
        return torch.zeros_like(arguments[0]), decode_attention(*arguments, stats=stats)[1]

    with pytest.raises(GateError):
        cpu_row([Problem(SMALL, 1, 40, "fp32")], seconds=0, static=False, attend=broken)
    assert calls == [True, False]


def test_the_row_is_json_and_its_ratios_are_those_of_its_times() -> None:
    told = []
    problems = [Problem(SMALL, 1, 40, "fp32"), Problem(SMALL, 2, cpu.TARGET_ENTRIES, "bf16")]
    row = json.loads(json.dumps(cpu_row(problems, seconds=0, static=False, progress=told.append)))
    assert row["benchmark"] == "kernels cpu"
    assert row["cases"] == told
    assert [(c["batch"], c["entries"], c["dtype"]) for c in row["cases"]] == [(1, 40, "fp32"), (2, 4096, "bf16")]
    for case in row["cases"]:
        assert set(case["milliseconds"]) == {
            "on",
            "off",
            "packed_on",
            "packed_off",
            "sdpa_folded",
            "sdpa_gqa",
            "eager",
            "eager_statistics",
        }
        assert all(value > 0 for value in case["milliseconds"].values())
        assert set(cpu.OVERHEADS) <= set(case)
    assert row["cases"][1]["kv_bytes"] == 2 * 2 * 2 * 4096 * 16 * 2
    assert {target["ratio"] for target in row["targets"]} == set(cpu.TARGETS)
    for target in row["targets"]:
        assert target["entries"] == 4096
        assert target["met"] == (target["value"] <= target["limit"])


def test_a_row_is_told_by_the_ratios_that_it_has() -> None:
    case = {"model": "small", "milliseconds": {"on": 1.2, "off": 1.0}, "overhead_on_over_off": 1.2, "overhead_off_over_sdpa": 0.5}
    targets = [
        {"ratio": "overhead_on_over_off", "met": True, "value": 1.2},
        {"ratio": "overhead_off_over_sdpa", "met": False, "value": 1.5},
    ]
    told = markdown.target_lines({"targets": targets})
    assert told.splitlines() == [
        "- on / off at most 1.2 at 4,096 entries: met in 1 of 1 cases (1.20 to 1.20).",
        "- off / SDPA folded at most 1 at 4,096 entries: met in 0 of 1 cases (1.50 to 1.50).",
    ]
    assert "packed" not in markdown.times_table([case], ("model",))
    lines = markdown.times_table([case | {"overhead_packed_on_over_off": 1.1}], ("model",)).splitlines()
    assert lines[0].endswith("| on / off | on / off, packed | off / SDPA folded |")
    assert lines[2].endswith("| 1.20 | 1.10 | 0.50 |")


def test_ratios_are_taken_within_a_round() -> None:
    times = {"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert median_ratio(times, "a", "b") == 2.0
    assert median_ratio(times, "a", "absent") is None


def test_every_call_comes_once_a_round_and_not_always_after_the_same() -> None:
    log: list[str] = []
    times = interleaved({name: lambda name=name: log.append(name) for name in "abc"}, seconds=0, rounds=(8, 8))
    assert {name: len(each) for name, each in times.items()} == {"a": 8, "b": 8, "c": 8}
    rounds = ["".join(log[at : at + 3]) for at in range(6, len(log), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 2


def test_rivals_compute_the_same() -> None:
    inputs = make(Problem(SMALL, 2, 50, "fp32"))
    out, stats = decode_attention(inputs.q, inputs.arena, inputs.position, inputs.scale)
    for other in (rivals.sdpa_folded(inputs), rivals.sdpa_gqa(inputs), rivals.eager(inputs)[0]):
        torch.testing.assert_close(other, out, rtol=1e-5, atol=1e-6)
    for name, value in rivals.eager_statistics(inputs).items():
        torch.testing.assert_close(value, getattr(stats, name), rtol=1e-4, atol=1e-5, msg=name)


def test_problems_are_those_that_the_issue_names() -> None:
    found = {(p.shape, p.batch, p.entries, p.dtype) for p in cpu.problems()}
    assert {(EMBEDDED, 8, 16384, "bf16"), (QWEN_7B, 8, 16384, "fp32"), (LLAVA_7B, 1, 16384, "fp32"), (LLAVA_7B, 8, 4096, "bf16")} <= found
    assert max(p.kv_bytes for p in cpu.problems()) <= cpu.LARGEST
    sizes = [p.kv_bytes / 1e6 for p in gpu.problems()]
    assert [round(size) for size in sizes] == [17, 134, 537, 2147] * 3


@pytest.mark.parametrize("entries", [20, 256, 4096])
def test_segments_lie_as_in_a_prompt(entries: int) -> None:
    kinds = segments(entries).tolist()
    assert len(kinds) == entries
    assert kinds[0] == 0
    assert abs(kinds.count(2) / entries - 0.6) < 0.06
    assert [k for i, k in enumerate(kinds) if i == 0 or k != kinds[i - 1]] in ([0, 1, 2, 4, 5], [0, 2, 4, 5])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_gpu_benchmark_says_so() -> None:
    with pytest.raises(KernelError, match="needs a CUDA device"):
        gpu_row(quick=True, progress=print)


def test_the_first_call_is_timed_where_it_compiles_and_where_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "DTYPES", {"fp32": torch.float32})
    row = cpu_row([], seconds=0, static=False, compiles=True)
    took = row["first_call_seconds"]
    assert {name: set(seconds) for name, seconds in took.items()} == {"fp32": {"compiled", "loaded"}}
    # Not a matter of speed: a compiler takes many times what reading a file does, or the second process has compiled as well.
    assert took["fp32"]["compiled"] > took["fp32"]["loaded"] > 0
    line = markdown.first_call_line({"fp32": {"compiled": 9.87, "loaded": 0.31}, "bf16": {"compiled": 8, "loaded": 0.4}})
    assert line == " The first call in a process: fp32 9.9 s, from kept machine code 0.3 s; bf16 8.0 s, from kept machine code 0.4 s."
    assert markdown.first_call_line({}) == ""


def test_a_first_call_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "DTYPES", {"fp32": "torch.no_dtype"})
    with pytest.raises(KernelError, match=r"compiling for torch\.no_dtype failed"):
        first_call.first_calls()
