"""Head statistics: what one query's attention did, per head, from one pass.

The definitions are DESIGN.md's. `p` are attention probabilities over the
retained entries, `q` is the query's token index, `s` an entry's token index.
A value that does not exist (no image entry retained, no entry at s = q - 1)
is NaN for reals and -1 for indices, never a plausible number.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch

WINDOW = 10
"""Width of `windowed_distance`, in tokens (WAAD, arXiv 2510.13554)."""


class HeadStats(NamedTuple):
    """Statistics of one decode step, one layer.

    Reals are fp32 and indices int32, `[batch, num_heads]`, but `mass` which is
    `[batch, num_heads, 6]` and `retained`, `int32 [batch, num_kv_heads, 6]`.

    Attributes:
        lse: log sum exp of the scaled scores, nats.
        entropy: -sum p ln p, nats.
        sum_sq: sum p^2; its inverse is the effective support.
        max_prob: the largest p.
        argmax_position: token index of the largest p.
        mass: sum p per segment, in the order of `Segment`.
        image_entropy: entropy within the image segment, renormalised, nats.
        image_max: largest p within the image segment, renormalised.
        image_argmax_position: token index of that entry.
        image_output_share: norm of the image entries' part of the output over the whole output's norm.
        self_mass: p at s = q.
        previous_mass: p at s = q - 1.
        mean_distance: sum p (q - s), tokens.
        windowed_distance: sum p min(q - s, 10), tokens.
        retained: number of retained entries per KV head and segment.
    """

    lse: torch.Tensor
    entropy: torch.Tensor
    sum_sq: torch.Tensor
    max_prob: torch.Tensor
    argmax_position: torch.Tensor
    mass: torch.Tensor
    image_entropy: torch.Tensor
    image_max: torch.Tensor
    image_argmax_position: torch.Tensor
    image_output_share: torch.Tensor
    self_mass: torch.Tensor
    previous_mass: torch.Tensor
    mean_distance: torch.Tensor
    windowed_distance: torch.Tensor
    retained: torch.Tensor


FEATURE_SCHEMA: tuple[str, ...] = ("v1", *HeadStats._fields, "logical", "retention")
"""Names and order of everything recorded per head; `logical` and `retention` are per request."""


def feature_schema_hash() -> str:
    """First 16 hex digits of the SHA-256 of the feature schema; in every trace, manifest and event."""
    return hashlib.sha256("\n".join(FEATURE_SCHEMA).encode()).hexdigest()[:16]
