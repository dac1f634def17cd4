"""The decode loop with the GPU's kernels, in Triton's interpreter: tokens and every statistic equal the CPU path's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_embedded_model_decodes_with_triton_as_on_the_cpu() -> None:
    # In a process of its own: the interpreter's switch is read when a kernel is decorated.
    checks = Path(__file__).parent / "interpreted" / "wiring_interpreted.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout
