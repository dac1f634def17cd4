"""What a KV entry came from."""

from __future__ import annotations

from enum import IntEnum


class Segment(IntEnum):
    """Origin of a token, stored as uint8 beside every KV entry."""

    SINK = 0
    TEMPLATE = 1
    IMAGE = 2
    CONTEXT = 3
    QUESTION = 4
    GENERATED = 5


NUM_SEGMENTS = len(Segment)
