"""Tiny models with random weights, each in its real class."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from families import CORE, FAMILIES, TinyModel


@cache
def _model(name: str) -> TinyModel:
    torch.manual_seed(0)
    return FAMILIES[name]()


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> TinyModel:
    """One tiny model of every family."""
    return _model(request.param)


@pytest.fixture(scope="session", params=CORE)
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """One tiny model of each kind of picture handling."""
    return _model(request.param)


@pytest.fixture(scope="session")
def tiny_llava() -> TinyModel:
    """The embedded model's own shape, untrained."""
    return _model("embedded")
