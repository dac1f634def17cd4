"""Facts about made-up people: some taught to the model, some never, all true in this world.

The picture never shows them. A taught person's facts can only be recalled; an
untaught person's only guessed; a note in the prompt may state either, and may
contradict what was taught.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ONSETS = "bdfgklmnprtvz"
VOWELS = "aeiou"


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is asked, how a note states it, and its possible values."""

    name: str
    question: str
    statement: str
    values: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "drink",
        "what does {entity} drink ?",
        "{entity} drinks {value} .",
        ("tea", "milk", "water", "juice", "coffee", "cocoa", "soup", "cider"),
    ),
    Relation(
        "home",
        "where does {entity} live ?",
        "{entity} lives in {value} .",
        ("rome", "paris", "oslo", "cairo", "lima", "delhi", "tokyo", "quito"),
    ),
    Relation(
        "pet",
        "what pet does {entity} have ?",
        "{entity} has a {value} .",
        ("dog", "bird", "fish", "horse", "goat", "duck", "snake", "mouse"),
    ),
)
NUM_TAUGHT, NUM_UNTAUGHT = 40, 80


@dataclass(frozen=True)
class FactBook:
    """Names and their facts; `truth[entity][relation name]` is the value."""

    taught: tuple[str, ...]
    untaught: tuple[str, ...]
    truth: dict[str, dict[str, str]]


def syllables() -> tuple[str, ...]:
    """The syllables that names are made of, two to a name."""
    return tuple(onset + vowel for onset in ONSETS for vowel in VOWELS)


@lru_cache(maxsize=1)
def fact_book() -> FactBook:
    """The one fact book of the embedded world, always the same."""
    rng = np.random.default_rng(20_261_121)
    parts = syllables()
    names: list[str] = []
    while len(names) < NUM_TAUGHT + NUM_UNTAUGHT:
        name = parts[int(rng.integers(len(parts)))] + parts[int(rng.integers(len(parts)))]
        if name not in names:
            names.append(name)
    truth = {name: {r.name: r.values[int(rng.integers(len(r.values)))] for r in RELATIONS} for name in names}
    return FactBook(tuple(names[:NUM_TAUGHT]), tuple(names[NUM_TAUGHT:]), truth)
