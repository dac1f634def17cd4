"""What every entry received from this step's query, from the scores that the attention kernel kept: K is not read again."""

import triton
import triton.language as tl

from introspect_kernels.decode.triton_attend import ROWS
from introspect_kernels.decode.triton_plan import chunk_size

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def received_kernel(
    scores,
    lse,
    position,
    start,
    length,
    query_position,
    chunk_run,
    run_chunk,
    received,  # in and out, fp32 [slots]
    queries,  # in and out, int32 [slots]
    runs,
    kv_heads,
    chunk_limit,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SMALL: tl.constexpr,
    LARGE: tl.constexpr,
):
    """Adds sum over the group of p, and one query, to every entry of every run but the query's own."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    total = tl.minimum(tl.load(run_chunk + runs), chunk_limit)
    for chunk in range(tl.program_id(0), total, tl.num_programs(0)):
        run = tl.load(chunk_run + chunk)
        asked = tl.load(query_position + run // kv_heads)
        base = tl.load(start + run).to(tl.int64)
        entries = tl.load(length + run)
        step = chunk_size(entries, SMALL, LARGE)
        low = (chunk - tl.load(run_chunk + run)) * step
        high = tl.minimum(low + step, entries)
        lse2 = tl.load(lse + run * GROUP + rows, mask=rows < GROUP, other=0.0) * LOG2E
        for offset in range(low, high, BLOCK):
            slot = base + offset + columns
            inside = offset + columns < high
            score = tl.load(
                scores + slot[None, :] * GROUP + rows[:, None], mask=inside[None, :] & (rows < GROUP)[:, None], other=float("-inf")
            )
            p = tl.sum(tl.exp2(score - lse2[:, None]), 0)
            others = inside & (tl.load(position + slot, mask=inside, other=0) != asked)
            tl.store(received + slot, tl.load(received + slot, mask=others) + p, mask=others)
            tl.store(queries + slot, tl.load(queries + slot, mask=others) + 1, mask=others)
