"""The README is true: its figures are those of the result files, and its snippets run as printed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    """The program that writes the README's blocks."""
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_those_of_the_result_files(readme: ModuleType) -> None:
    blocks = readme.figures()
    for path in readme.PAGES:
        page = path.read_text(encoding="utf-8")
        assert readme.filled(page, blocks) == page, f"{path.name} is stale: run python tools/readme.py"


@pytest.mark.slow
def test_snippets_run_as_printed_against_the_service(readme: ModuleType) -> None:
    found = readme.snippets((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(found) == set(readme.SNIPPETS)
    with readme.service():
        answer = json.loads(readme.run_snippet(*found["curl"]))
        streamed = readme.run_snippet(*found["openai"])
        events = readme.run_snippet(*found["stream"])
    signals = answer["introspection"]
    assert answer["choices"][0]["message"]["content"]
    assert 0 <= signals["confidence"] <= 1
    assert signals["calibrated"]
    assert signals["strategy"]["label"]
    assert "risk 0." in streamed
    assert "confidence" in streamed
    assert "introspect.completed.v1" in events
