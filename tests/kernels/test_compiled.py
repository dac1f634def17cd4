"""Every shipped configuration compiled for three generations of GPUs: what a GPU would punish shows without one."""

from __future__ import annotations

import pytest
import torch

from introspect_kernels.bench.compiled import Compiled, compile_launch, launches_of
from introspect_kernels.bench.static import CAPABILITIES, Shipped, shipped
from introspect_kernels.decode.triton_choices import choose, padded_head_dim
from introspect_kernels.implementations import interpreted

STREAMING = ("attend_kernel", "partial_lse_kernel", "column_sums_kernel", "row_statistics_kernel", "image_share_kernel")
SHARED_PER_MULTIPROCESSOR = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
REGISTERS_PER_MULTIPROCESSOR = 65536


def cases() -> list[object]:
    """Decode attention at every shape, the commonest and the tightest on all three architectures; of other kernels most tiles.

    `introspect_kernels.bench.static.static_counts` compiles all of them for all three and refuses what spills.
    """
    found = []
    for place, one in enumerate(shipped()):
        shape = (one.dtype, one.head_dim)
        everywhere = shape == ("bf16", 128) or (shape == ("fp32", 256) and one.kernel in ("attend_kernel", "row_statistics_kernel"))
        tiles_of_another = one.head_dim in (80, 96) or one.dtype == "fp16" or one.operator == "received_attention"
        left_out = one.kernel != "attend_kernel" and tiles_of_another
        for capability in CAPABILITIES if everywhere else () if left_out else (CAPABILITIES[place % 3],):
            name = f"{one.operator.replace(' ', '-')}-{one.kernel}-{one.dtype}-{one.head_dim}-{capability}"
            found.append(pytest.param(one, capability, id=name))
    return found


@pytest.mark.parametrize(("one", "capability"), cases())
def test_registers_copies_and_layout(one: Shipped, capability: int) -> None:
    compiled = compile_launch(one.launch, capability)
    assert (compiled.stack, compiled.spills) == (0, 0)
    assert compiled.registers <= 255
    assert compiled.shared <= SHARED_PER_MULTIPROCESSOR[capability] - 1024
    if one.kernel in STREAMING:
        assert compiled.wide_async_copies > 0
        assert compiled.matrix_instructions > 0
        assert compiled.mma_layouts
        for layout in compiled.mma_layouts:
            assert _repeats(one, layout) <= one.launch.options["num_warps"] // 4
    if one.kernel in ("compact_kernel", "rebudget_kernel"):
        assert compiled.wide_loads > 0
    if one.kernel == "rebudget_kernel":
        assert compiled.ptx.count("bar.sync") >= 2
    if one.kernel == "attend_kernel":
        _check_attention(one, compiled, capability)


def _repeats(one: Shipped, layout: str) -> float:
    """How often the warps that a layout puts along a tile's sides run its matrix instructions, of 16 rows by 8 columns.

    Eight warps run those of the scores twice, since a tile has 32 columns, in exchange for half of the output's registers each.
    """
    down, across = (int(warps) for warps in layout[1:-1].split(","))
    arguments = one.launch.arguments
    rows, columns = arguments.get("BLOCK_R", 16), arguments.get("BLOCK_N", arguments.get("BLOCK"))
    return max(1, 16 * down / rows) * max(1, 8 * across / columns)


def _check_attention(one: Shipped, compiled: Compiled, capability: int) -> None:
    dtype = one.launch.arguments["k"].dtype
    choice = choose(dtype, one.head_dim, one.group, keep_scores=one.launch.arguments["KEEP_SCORES"])
    assert compiled.registers <= (choice.registers or 255)
    # 16-byte copies of both K and V, for every tile in flight and the one that the loop fetches.
    per_tile = 2 * choice.block * padded_head_dim(one.head_dim) * dtype.itemsize // (16 * 32 * choice.warps)
    assert compiled.wide_async_copies >= choice.stages * per_tile
    assert compiled.mma_layouts == {f"[1, {choice.warps}]"}  # [4, 1] would run every matrix instruction four times
    assert choice.residents * (compiled.shared + 1024) <= SHARED_PER_MULTIPROCESSOR[capability]
    assert choice.residents * compiled.registers * 32 * choice.warps <= REGISTERS_PER_MULTIPROCESSOR


def test_every_kernel_is_among_them() -> None:
    assert {one.kernel for one in shipped()} == {
        "plan_kernel", "attend_kernel", "combine_kernel", "received_kernel", "partial_lse_kernel", "merge_lse_kernel",
        "column_sums_kernel", "row_statistics_kernel", "image_share_kernel", "compact_kernel", "rebudget_kernel",
    }  # fmt: skip


def test_recording_undoes_itself() -> None:
    from triton.runtime.jit import JITFunction

    before = JITFunction.run
    with pytest.raises(ZeroDivisionError):
        launches_of(lambda: 1 / 0)
    assert JITFunction.run is before
    assert not interpreted()
    assert launches_of(lambda: torch.zeros(1)) == []
