"""The compiled products and exponentials on this processor, and as they are compiled for processors with shorter vectors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from product_checks import check_exponentials, check_products

# What Numba is told the processor is, what it can do, and how many fp32 numbers are then in a vector.
OTHERS = {"generic": ("", 4)}
if platform.machine() in {"x86_64", "AMD64"}:
    OTHERS["haswell"] = ("+avx,+avx2,+fma,+f16c,+sse4.2", 8)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_here(dtype: str) -> None:
    check_products(dtype)


def test_exponentials_here() -> None:
    check_exponentials()


@pytest.mark.parametrize("processor", OTHERS)
def test_on_other_processors(processor: str) -> None:
    features, lanes = OTHERS[processor]
    paths = os.pathsep.join(path for path in [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")] if path)
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "PYTHONPATH": paths}
    code = f"from product_checks import check_exponentials, check_products; check_products('float32', {lanes}); check_exponentials()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
