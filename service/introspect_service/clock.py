"""The wall clock, as events tell it. It may be set back or forward at any time: nothing is ordered, bounded or timed by it."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp() -> str:
    """This moment as an event's `time` has it: RFC 3339, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
