"""Rules that hold for every test: nothing is fetched, nothing is random, nothing is skipped unnoticed."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# Before anything imports transformers: a test that asks the hub for a file fails at once, instead of hanging or passing by luck.
os.environ["HF_HUB_OFFLINE"] = "1"

# No deadline: a busy machine is not a wrong number. Derandomized: the same examples in every run.
settings.register_profile("introspect", deadline=None, derandomize=True)
settings.load_profile("introspect")

# Set by CI: what a test needs must be there, so a skip is a failure (tests that need a GPU aside).
REQUIRE_ALL = os.environ.get("INTROSPECT_REQUIRE_ALL", "0") not in {"", "0"}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the service does."""
    return "asyncio"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is no NVIDIA GPU."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under INTROSPECT_REQUIRE_ALL a skipped test fails, unless it is marked `gpu`. Expected failures stay what they are."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Under INTROSPECT_REQUIRE_ALL a module that skips itself while it is collected (importorskip, say) fails."""
    report = yield
    if REQUIRE_ALL and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"INTROSPECT_REQUIRE_ALL is set and this was skipped. {reason}"
