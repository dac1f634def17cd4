"""Tiny models with random weights, each in its real class."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, TinyModel


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """One tiny model of each family."""
    torch.manual_seed(0)
    return FAMILIES[request.param]()


@pytest.fixture(scope="session")
def tiny_llava() -> TinyModel:
    """The embedded model's own shape, untrained."""
    torch.manual_seed(0)
    return FAMILIES["embedded"]()
