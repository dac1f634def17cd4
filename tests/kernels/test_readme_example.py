"""The kernels' README: its example prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_the_example_prints_what_stands_below_it() -> None:
    found = re.search(
        r"<!-- example -->\n```python\n(?P<code>.*?)```\n```text\n(?P<printed>.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(found["code"], {})  # noqa: S102 - our own README
    assert output.getvalue() == found["printed"]
