"""A world: an endless, numbered supply of cases whose truth is exact.

Case `index` of a seed and pool depends on nothing but these (and on the mix of
kinds and the style that were asked for), so any case can be made alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from introspect_probes.errors import CaseError
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.digits import POOLS, Pool
from introspect_probes.worlds.questions import ASKERS, FACT_KINDS, Question, caption_of
from introspect_probes.worlds.scene import COUNTER_PRIOR, NATURAL, Scene, SceneStyle, draw_scene

COUNTER_PRIOR_SHARE = 0.5
TEXT_ONLY_SHARE = 0.2
"""Share of the questions about facts that come without a picture."""

Kinds = Sequence[str] | Mapping[str, float]
_STREAM = 20_260_714
"""Keeps a world's random numbers apart from those of training with the same seed."""


@dataclass(frozen=True)
class World:
    """A generator of labelled cases, known by its name."""

    name: str

    def cases(
        self, n: int, *, seed: int, pool: Pool, kinds: Kinds | None = None, style: SceneStyle | None = None, start: int = 0
    ) -> Iterator[Case]:
        """Cases `start` to `start + n - 1`.

        Args:
            n: how many.
            seed: not negative; another seed gives other cases.
            pool: which writers' digits the pictures hold.
            kinds: askers' names (`ASKERS`), alike in weight or with a weight each; all of them by default.
            style: how scenes are drawn; by default half are natural and half against the learned priors.
            start: the index of the first case.

        Raises:
            CaseError: on an unknown kind or pool, a weight or seed that cannot be used.
        """
        weights = _weights(kinds)
        if pool not in POOLS:
            raise CaseError(f"unknown pool {pool!r}: choose one of {', '.join(POOLS)}")
        if seed < 0 or start < 0 or n < 0:
            raise CaseError(f"n, seed and start must not be negative, got {n}, {seed}, {start}")
        return (self._case(index, seed, pool, weights, style) for index in range(start, start + n))

    def _case(self, index: int, seed: int, pool: Pool, weights: dict[str, float], style: SceneStyle | None) -> Case:
        rng = np.random.default_rng([_STREAM, seed, POOLS.index(pool), index])
        shares = np.array(list(weights.values()))
        kind = list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        chosen = style or (COUNTER_PRIOR if rng.random() < COUNTER_PRIOR_SHARE else NATURAL)
        is_text_only = kind in FACT_KINDS and rng.random() < TEXT_ONLY_SHARE
        scene, question = _ask(kind, pool, chosen, rng)
        return Case(
            id=f"{self.name}-{pool}-{seed}-{index:06d}",
            kind=question.kind,
            question=question.text,
            answers=(question.answer,),
            group=question.group or f"scene-{pool}-{seed}-{index}",
            source=question.source,
            # A caption is of a photo; without one it would be about nothing.
            context=question.context[len(caption_of(scene)) :] if is_text_only else question.context,
            scene=None if is_text_only else scene,
            evidence=question.evidence,
            prior=question.prior,
            pool=pool,
        )


def _ask(kind: str, pool: Pool, style: SceneStyle, rng: np.random.Generator) -> tuple[Scene, Question]:
    """Draw scenes until one allows a question of this kind."""
    for _ in range(1000):
        scene = draw_scene(rng, pool, style)
        question = ASKERS[kind](scene, rng)
        if question is not None:
            return scene, question
    raise CaseError(f"no scene of this style allows a {kind!r} question: give it fewer covers or more digits")


def _weights(kinds: Kinds | None) -> dict[str, float]:
    chosen = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds if kinds is not None else ASKERS, 1.0)
    unknown = [kind for kind in chosen if kind not in ASKERS]
    if unknown or not chosen:
        raise CaseError(f"unknown question kinds {unknown}: choose among {', '.join(ASKERS)}")
    if min(chosen.values()) < 0 or not 0 < sum(chosen.values()) < float("inf"):
        raise CaseError(f"the kinds' weights must not be negative, with a positive sum, got {chosen}")
    return chosen


WORLDS: dict[str, World] = {"digits": World("digits")}


def get_world(name: str) -> World:
    """The world of that name.

    Raises:
        CaseError: there is none; the message lists the names.
    """
    try:
        return WORLDS[name]
    except KeyError:
        raise CaseError(f"unknown world {name!r}: choose one of {', '.join(WORLDS)}") from None
