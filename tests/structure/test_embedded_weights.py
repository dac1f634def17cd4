"""The embedded model stays small enough to live in a repository, and is stored as it was evaluated."""

from __future__ import annotations

import json
import math
import struct

import pytest

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def weights(packages):
    """The file with the embedded model's weights."""
    return packages["introspect"] / "introspect" / "embedded" / "model.safetensors"


@pytest.fixture(scope="module")
def tensors(weights):
    """Shape and type of each tensor, read from the header alone (8 bytes of its length, then JSON)."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_weights_are_at_most_8_megabytes(weights):
    assert weights.stat().st_size <= 8 * MEGABYTE


def test_parameters_are_at_most_4_million(tensors):
    parameters = sum(math.prod(entry["shape"]) for entry in tensors.values())
    assert 100_000 < parameters <= 4_000_000


def test_every_tensor_is_stored_in_bfloat16(tensors):
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}
