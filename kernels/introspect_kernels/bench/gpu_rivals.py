"""What else computes decode attention on a GPU: torch's own kernels, and those of packages where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from introspect_kernels.bench import rivals
from introspect_kernels.bench.problems import Inputs

Call = Callable[[], torch.Tensor]
Arm = Callable[[Inputs], Call]
"""Prepares a problem's inputs as a rival wants them and returns the call to be timed: its output is `[batch, num_heads, head_dim]`."""
PAGE = 16  # tokens of a page, FlashInfer's and vLLM's usual size
WORKSPACE = 128 << 20  # bytes, what FlashInfer's documentation allocates
TOLERANCE = 2e-2  # of an output in bf16, whose values are below one
OF_TORCH: dict[str, Callable[[Inputs], torch.Tensor]] = {"sdpa_folded": rivals.sdpa_folded, "sdpa_gqa": rivals.sdpa_gqa}


def sdpa_flash(inputs: Inputs) -> Call:
    """FlashAttention as torch brings it, query heads folded into rows."""

    def call() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return rivals.sdpa_folded(inputs)

    return call


def flex(inputs: Inputs) -> Call:
    """FlexAttention, compiled for this shape alone; refused rather than run without being compiled."""
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(inputs.q[:, :, None], inputs.k, inputs.v, scale=inputs.scale, enable_gqa=True)[:, :, 0]


def flash_attn(module: str, inputs: Inputs) -> Call:
    """`flash_attn_with_kvcache` of FlashAttention 2 (`flash_attn`) or 3 (`flash_attn_interface`); entries before heads in its cache."""
    if module == "flash_attn":
        import flash_attn as package
    else:
        import flash_attn_interface as package
    function: Any = package.flash_attn_with_kvcache
    k, v = inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)
    lengths = torch.full((k.shape[0],), k.shape[1], dtype=torch.int32, device=k.device)
    return lambda: function(inputs.q[:, None], k, v, cache_seqlens=lengths, softmax_scale=inputs.scale, causal=False)[:, 0]


def flashinfer(inputs: Inputs) -> Call:
    """FlashInfer's batched decode over pages, planned beforehand; on tensor cores where heads share a KV head, as it advises."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, heads, head_dim = inputs.q.shape
    kv_heads, entries = inputs.k.shape[1:3]
    workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=inputs.q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=heads > kv_heads)
    each = entries // PAGE
    indptr = torch.arange(batch + 1, dtype=torch.int32, device=inputs.q.device) * each
    indices = torch.arange(batch * each, dtype=torch.int32, device=inputs.q.device)
    last = torch.full((batch,), PAGE, dtype=torch.int32, device=inputs.q.device)
    dtype = inputs.q.dtype
    wrapper.plan(
        indptr, indices, last, heads, kv_heads, head_dim, PAGE, q_data_type=dtype, kv_data_type=dtype, sm_scale=inputs.scale
    )  # fmt: skip
    cache = (pages(inputs.k), pages(inputs.v))
    return lambda: wrapper.run(inputs.q, cache)


def pages(cache: torch.Tensor) -> torch.Tensor:
    """`[batch, kv_heads, entries, d]` as `[batch * entries / PAGE, kv_heads, PAGE, d]`, a copy; a sequence's pages follow each other.

    Raises:
        ValueError: the entries fill no whole number of pages.
    """
    batch, kv_heads, entries, head_dim = cache.shape
    if entries % PAGE:
        raise ValueError(f"expected a multiple of {PAGE} entries, got {entries}")
    return cache.view(batch, kv_heads, -1, PAGE, head_dim).transpose(1, 2).reshape(-1, kv_heads, PAGE, head_dim)


OF_PACKAGES: dict[str, tuple[str, Arm]] = {
    "flash_attn_2": ("flash_attn", partial(flash_attn, "flash_attn")),
    "flash_attn_3": ("flash_attn_interface", partial(flash_attn, "flash_attn_interface")),
    "flashinfer": ("flashinfer", flashinfer),
}
"""Name of the arm: the module that it imports, and how it is prepared."""


def installed() -> dict[str, Arm]:
    """The arms that can be tried here, by name."""
    arms: dict[str, Arm] = {name: partial(_plain, function) for name, function in OF_TORCH.items()}
    arms |= {"sdpa_flash": sdpa_flash, "flex_attention": flex}
    return arms | {name: arm for name, (module, arm) in OF_PACKAGES.items() if importlib.util.find_spec(module) is not None}


def not_installed() -> dict[str, str]:
    """Why an arm is not tried, by name."""
    missing = {name: module for name, (module, _) in OF_PACKAGES.items() if importlib.util.find_spec(module) is None}
    return {name: f"the package with the module {module} is not installed" for name, module in missing.items()}


def ready(arms: Mapping[str, Arm], copies: Sequence[Inputs], expected: torch.Tensor) -> tuple[dict[str, list[Call]], dict[str, str]]:
    """Prepare every arm and compare its first output with ours.

    Args:
        arms: by name.
        copies: of the problem; each arm is prepared for all of them.
        expected: the output for the first of them.

    Returns:
        The calls of the arms that compute the same, by name, and what kept the others from being timed.
    """
    calls: dict[str, list[Call]] = {}
    failed: dict[str, str] = {}
    for name, arm in arms.items():
        try:
            prepared = [arm(inputs) for inputs in copies]
            out = prepared[0]()
            error = float((out.float() - expected.float()).abs().max())
        except Exception as reason:  # noqa: BLE001 (whatever another's code raises is told in the row)
            failed[name] = told(reason)
            continue
        if error <= TOLERANCE:
            calls[name] = prepared
        else:
            failed[name] = f"its output differs from ours by {error:.3g}"
    return calls, failed


def told(reason: Exception) -> str:
    """An error's kind and first line."""
    return f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0][:200]}"


def _plain(function: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> Call:
    return partial(function, inputs)
