"""What a long study has measured so far, in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from introspect.provenance import provenance


class Unfinished:
    """Parts of a study by name; what was measured by other code, on another machine or for another question is not taken up.

    Args:
        path: the file, or `None` to keep nothing.
        asked: what tells this run from others: arguments, the model's fingerprint.
    """

    def __init__(self, path: Path | None, asked: Mapping[str, Any]) -> None:
        self._path = path
        facts = provenance()
        self._key = {"asked": dict(asked), **{name: facts.get(name) for name in ("commit", "versions", "machine")}}
        self._key = json.loads(json.dumps(self._key))
        self._parts: dict[str, Any] = {}
        if path is not None and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] == self._key:
                self._parts = found["parts"]

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """A part, measured now unless it was before; must survive JSON."""
        if name not in self._parts:
            self._parts[name] = measure()
            if self._path is not None:
                whole = self._path.with_suffix(".writing")
                whole.write_text(json.dumps({"key": self._key, "parts": self._parts}), encoding="utf-8")
                whole.replace(self._path)
        return self._parts[name]
