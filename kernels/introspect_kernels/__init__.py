"""Attention operators that measure themselves."""

from introspect_kernels.arena import Arena
from introspect_kernels.compact.api import compact, compact_into, rebudget
from introspect_kernels.compact.selection import pad_selection
from introspect_kernels.decode.api import compile_ahead, decode_attention, decode_attention_packed
from introspect_kernels.decode.packing import INDICES, REALS, PackedStats
from introspect_kernels.errors import KernelError, KernelInputError, UnknownImplementationError
from introspect_kernels.received.api import ReceivedAttention, received_attention
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import FEATURE_SCHEMA, HeadStats, feature_schema_hash
from introspect_kernels.window.api import row_statistics, window_scores
from introspect_kernels.window.rows import last_rows

__all__ = [
    "FEATURE_SCHEMA",
    "INDICES",
    "NUM_SEGMENTS",
    "REALS",
    "Arena",
    "HeadStats",
    "KernelError",
    "KernelInputError",
    "PackedStats",
    "ReceivedAttention",
    "Segment",
    "UnknownImplementationError",
    "compact",
    "compact_into",
    "compile_ahead",
    "decode_attention",
    "decode_attention_packed",
    "feature_schema_hash",
    "last_rows",
    "pad_selection",
    "rebudget",
    "received_attention",
    "row_statistics",
    "window_scores",
]
