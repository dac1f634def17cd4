"""Attention operators that measure themselves."""

from introspect_kernels.arena import Arena
from introspect_kernels.decode.api import decode_attention
from introspect_kernels.errors import KernelError, KernelInputError, UnknownImplementationError
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import FEATURE_SCHEMA, HeadStats, feature_schema_hash

__all__ = [
    "FEATURE_SCHEMA",
    "NUM_SEGMENTS",
    "Arena",
    "HeadStats",
    "KernelError",
    "KernelInputError",
    "Segment",
    "UnknownImplementationError",
    "decode_attention",
    "feature_schema_hash",
]
