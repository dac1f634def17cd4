"""Run by `test_window_triton.py` in a process of its own: TRITON_INTERPRET must be set before a kernel is decorated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memory_bounds import checked_memory
from prompt_checks import CHECKS

from introspect_kernels.implementations import interpreted

# The interpreter computes with NumPy, which remarks on a logarithm of zero even where the result is masked away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _own_memory_only() -> Iterator[None]:
    with checked_memory():
        yield


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]("cpu")


def test_this_is_the_interpreter() -> None:
    assert interpreted()
