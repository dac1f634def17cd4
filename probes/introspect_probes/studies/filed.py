"""Results of studies in files: what was made of the same request is not made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def filed(path: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The result in a file, where there is one and its `request` is the same."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["request"] == request else None


def file_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result.

    Raises:
        ValueError: a number of it is none, which JSON cannot carry.
    """
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
