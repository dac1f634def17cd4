"""The embedded model as shipped, and some of its own answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.types import Budget
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.record import record
from introspect_probes.traces import Trace, read_traces
from introspect_probes.worlds.world import get_world


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine on the embedded model."""
    return Engine(load_model())


@pytest.fixture(scope="session")
def probes() -> ProbeSet:
    """The embedded probe set."""
    return load_probe_set()


@pytest.fixture(scope="session")
def trace_folder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four cases of the test pool under two conditions, recorded once."""
    folder = tmp_path_factory.mktemp("traces")
    record(get_world("digits").cases(24, seed=5, pool="test"), engine, folder, budgets=[Budget(), Budget("snapkv", ratio=0.2)])
    return folder


@pytest.fixture(scope="session")
def traces(trace_folder: Path) -> list[Trace]:
    """What was recorded, read back."""
    return list(read_traces(trace_folder))
