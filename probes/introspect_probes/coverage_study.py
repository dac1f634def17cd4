"""Why even coverage holds: each of its parts taken away, and eviction in one layer at a time.

The arms are policies like any other, so that everything else is equal: budget, cases, engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.engine import Engine
from introspect.policies import added, get_policy
from introspect.policies.base import Policy, Prefilled, with_protected
from introspect.policies.coverage import Coverage, layer_shares
from introspect.policies.window_scores import best_by_layer
from introspect_kernels import Segment
from introspect_probes.budget_accuracy import NULL, budget_accuracy
from introspect_probes.worlds.digits import Pool

RATIOS = (0.25, 0.12)


class AllLayersAlike(Coverage):
    """Coverage, but every layer keeps as much as any other."""

    name: ClassVar[str] = "coverage, all layers alike"
    first_layer: ClassVar[float] = 1.0


class Unstratified(Coverage):
    """Coverage, but entries are drawn anywhere: random eviction with the first layer's double share."""

    name: ClassVar[str] = "coverage, drawn anywhere"

    def one_head(self, line: NDArray[np.int64], protected: torch.Tensor, capacity: int, rng: np.random.Generator) -> torch.Tensor:
        """A uniform draw."""
        return with_protected(torch.from_numpy(rng.permutation(line)), protected, capacity)


class AllText(Coverage):
    """Coverage, but of the picture only: all text is kept."""

    name: ClassVar[str] = "coverage, all text kept"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """What text leaves of the budget goes to the picture."""
        return super().layers(_TextProtected(**vars(prefilled)), keep)


class _TextProtected(Prefilled):
    def protected(self) -> torch.Tensor:
        return super().protected() | torch.from_numpy(self.segments != Segment.IMAGE)


class OneDraw(Coverage):
    """Coverage, but all heads of a layer keep the same entries."""

    name: ClassVar[str] = "coverage, heads alike"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """The first head's choice for all, where their capacities are equal."""
        for layer in super().layers(prefilled, keep):
            same = {len(kept): kept for kept in reversed(layer)}
            yield [same[len(kept)] for kept in layer]


class WindowRanking(Policy):
    """SnapKV's ranking with coverage's shares: is it the shares alone?"""

    name: ClassVar[str] = "snapkv, first layer twice"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """`keep` entries per KV head in the mean, exactly."""
        return best_by_layer(prefilled, layer_shares(prefilled, keep, int(prefilled.protected().sum()), Coverage.first_layer))


ARMS: tuple[type[Policy], ...] = (AllLayersAlike, Unstratified, AllText, OneDraw, WindowRanking)


def only_layer(layer: int) -> type[Policy]:
    """Coverage at one rate in one layer; all other layers keep everything, so the budget is not the nominal one."""

    class OnlyLayer(AllLayersAlike):
        name: ClassVar[str] = f"layer {layer} only"

        def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
            everything = next(iter(get_policy("full").layers(prefilled, keep)))
            for index, kept in enumerate(super().layers(prefilled, keep)):
                yield kept if index == layer else everything

    return OnlyLayer


def coverage_study(
    engine: Engine, *, scenes: int = 100, pool: Pool = "test", seed: int = 0, ratios: Sequence[float] = RATIOS, keep: Path | None = None
) -> dict[str, Any]:
    """Coverage, random eviction and the arms at some ratios, then eviction in single layers at the last one.

    With `keep`, a file beside the result, an interrupted run goes on where it was.

    Returns:
        A benchmark row like `budget_accuracy`'s; its rows `layer N only` keep all other layers whole.
    """
    single = [only_layer(layer) for layer in range(engine.loaded.num_layers)]
    with added(*ARMS, *single):
        arms = (NULL, Coverage.name, *(arm.name for arm in ARMS))
        result = budget_accuracy(engine, scenes=scenes, pool=pool, seed=seed, policies=arms, ratios=ratios, keep=keep)
        layers = tuple(arm.name for arm in single)
        alone = budget_accuracy(
            engine,
            scenes=scenes,
            pool=pool,
            seed=seed,
            policies=layers,
            ratios=ratios[-1:],
            full=False,
            keep=keep,
        )
    return {**result, "benchmark": "engine coverage", "layers": alone["policies"], "rows": result["rows"] + alone["rows"]}
