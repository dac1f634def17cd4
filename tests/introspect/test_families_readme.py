"""The README's table of models lists what is tested, and says of each family from where on."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from families import FAMILIES, WITH_PROCESSOR

README = Path(__file__).parents[2] / "introspect" / "README.md"
ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| (picture|tensors) \| [^|]+ \|$", re.MULTILINE)


def test_the_table_of_models_is_the_list_of_families() -> None:
    torch.manual_seed(0)
    tested = [(type(build().loaded.model).__name__, "picture" if name in WITH_PROCESSOR else "tensors") for name, build in FAMILIES.items()]
    assert ROW.findall(README.read_text(encoding="utf-8")) == tested
