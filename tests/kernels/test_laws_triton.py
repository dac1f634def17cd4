"""Laws of the Triton kernels' statistics, in the interpreter, which needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_in_the_interpreter() -> None:
    # In a process of its own: the interpreter's switch is read when a kernel is decorated.
    checks = TESTS / "kernels" / "interpreted" / "laws_checks_interpreted.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(checks)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^4 passed in", done.stdout, re.MULTILINE), done.stdout
