"""Rivals on a GPU: those that cannot run are named with the reason, and inputs are laid out as their interfaces say.

The packages themselves need a GPU. Stand-ins with their documented interfaces, computed in plain torch, tell whether ours are
right for it; what only a GPU can show is what the packages make of them.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from introspect_kernels import decode_attention
from introspect_kernels.bench import gpu_rivals
from introspect_kernels.bench.gpu_rivals import PAGE, installed, not_installed, pages, ready, told
from introspect_kernels.bench.problems import Inputs, Problem, Shape, make

SMALL = Shape("small", 6, 2, 16)


def problem(entries: int = 48) -> tuple[Inputs, torch.Tensor]:
    inputs = make(Problem(SMALL, 3, entries, "fp32"))
    return inputs, decode_attention(inputs.q, inputs.arena, inputs.position, inputs.scale, stats=False)[0]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """`q [batch, heads, d]`, `k` and `v [batch, entries, kv_heads, d]`."""
    k, v = (t.transpose(1, 2).repeat_interleave(q.shape[1] // t.shape[2], 1) for t in (k, v))
    return (torch.softmax(q[:, :, None] @ k.transpose(2, 3) * scale, -1) @ v)[:, :, 0]


def test_what_cannot_run_is_named_and_nothing_else_is_lost() -> None:
    inputs, expected = problem()

    def breaks(_: Inputs) -> object:
        raise RuntimeError("no kernel for this shape\nand a long trace")

    arms = {
        "right": lambda _: lambda: expected.clone(),
        "broken": breaks,
        "late": lambda _: lambda: 1 / 0,
        "wrong": lambda _: lambda: -expected,
    }
    calls, failed = ready(arms, [inputs, inputs], expected)
    assert {name: len(each) for name, each in calls.items()} == {"right": 2}
    assert failed["broken"] == "RuntimeError: no kernel for this shape"
    assert failed["late"].startswith("ZeroDivisionError: ")
    assert failed["wrong"].startswith("its output differs from ours by ")
    assert told(ValueError()) == "ValueError: "


def test_what_is_nan_is_not_right() -> None:
    inputs, expected = problem()
    calls, failed = ready({"nan": lambda _: lambda: expected * torch.nan}, [inputs], expected)
    assert calls == {}
    assert failed == {"nan": "its output differs from ours by nan"}


def test_torchs_own_compute_the_same() -> None:
    inputs, expected = problem()
    arms = {name: arm for name, arm in installed().items() if name.startswith("sdpa")}
    assert set(arms) == {"sdpa_folded", "sdpa_gqa", "sdpa_flash"}
    calls, failed = ready(arms, [inputs], expected)
    assert set(calls) | set(failed) == set(arms)
    assert {"sdpa_folded", "sdpa_gqa"} <= set(calls)


def test_every_arm_is_either_tried_or_told_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"sdpa_folded", "sdpa_gqa", "sdpa_flash", "flex_attention", "flash_attn_2", "flash_attn_3", "flashinfer"}
    assert set(installed()) | set(not_installed()) == everything
    assert not set(installed()) & set(not_installed())
    monkeypatch.setitem(gpu_rivals.OF_PACKAGES, "flashinfer", ("no_such_module", gpu_rivals.flashinfer))
    assert not_installed()["flashinfer"] == "the package with the module no_such_module is not installed"
    assert "flashinfer" not in installed()


def test_pages_hold_a_sequences_entries_in_order() -> None:
    inputs, _ = problem()
    found = pages(inputs.k)
    assert found.shape == (9, 2, PAGE, 16)
    for page in range(9):
        b, first = page // 3, page % 3 * PAGE
        assert torch.equal(found[page], inputs.k[b, :, first : first + PAGE])
    with pytest.raises(ValueError, match="multiple of 16 entries, got 40"):
        pages(problem(40)[0].k)


@pytest.mark.parametrize("module", ["flash_attn", "flash_attn_interface"])
def test_flash_attention_gets_its_layout(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_kvcache(
        q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *, cache_seqlens: torch.Tensor, softmax_scale: float, causal: bool
    ) -> torch.Tensor:
        assert q.shape[1] == 1
        assert cache_seqlens.dtype == torch.int32
        assert cache_seqlens.tolist() == [k_cache.shape[1]] * k_cache.shape[0]
        assert not causal
        assert k_cache.stride(-1) == v_cache.stride(-1) == 1
        return attention(q[:, 0], k_cache, v_cache, softmax_scale)[:, None]

    monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_with_kvcache=with_kvcache))
    inputs, expected = problem()
    torch.testing.assert_close(gpu_rivals.flash_attn(module, inputs)(), expected, rtol=1e-5, atol=1e-6)


def test_flashinfer_gets_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper:
        def __init__(self, workspace: torch.Tensor, kv_layout: str, *, use_tensor_cores: bool) -> None:
            assert workspace.dtype == torch.uint8
            assert kv_layout == "HND"
            assert use_tensor_cores

        def plan(
            self, indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor,
            num_qo_heads: int, num_kv_heads: int, head_dim: int, page_size: int,
            *, q_data_type: torch.dtype, kv_data_type: torch.dtype, sm_scale: float,
        ) -> None:  # fmt: skip
            assert (num_qo_heads, num_kv_heads, head_dim, page_size) == (6, 2, 16, PAGE)
            assert {t.dtype for t in (indptr, indices, last_page_len)} == {torch.int32}
            assert q_data_type == kv_data_type == torch.float32
            self.planned = indptr, indices, last_page_len, sm_scale

        def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            indptr, indices, last, scale = self.planned
            out = []
            for b in range(q.shape[0]):
                own = indices[indptr[b] : indptr[b + 1]].long()
                length = (len(own) - 1) * PAGE + int(last[b])
                k, v = (t[own].transpose(1, 2).flatten(0, 1)[None, :length] for t in cache)
                out.append(attention(q[b : b + 1], k, v, scale))
            return torch.cat(out)

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    monkeypatch.setattr(gpu_rivals, "WORKSPACE", 1024)
    inputs, expected = problem()
    torch.testing.assert_close(gpu_rivals.flashinfer(inputs)(), expected, rtol=1e-5, atol=1e-6)
