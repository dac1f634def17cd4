"""The arms of the study of free-running answers: pictures and budgets that the probes were not fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from introspect.types import Budget
from introspect_probes.errors import ProbesError
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.scene import SceneStyle
from introspect_probes.worlds.world import get_world

KINDS = {"describe": 2.0, "digit_at": 2.0, "color_at": 1.0, "where": 1.0, "digit_of": 1.0, "color_of": 1.0, "sum_row": 1.0}
"""Questions about the picture and their weights; descriptions make most of the claims."""
HEAVY_NOISE = 0.55


@dataclass(frozen=True)
class Shift:
    """One arm: what is unlike the answers that the probes were fitted on.

    Attributes:
        name: what results are filed under.
        budget: of every answer.
        style: of the scenes; `None` for those of the fit.
        noise: of every picture, where it is given.
        degrades: `cache`, `image` or nothing: what the aims of the study tell apart.
    """

    name: str
    budget: Budget = field(default_factory=Budget)
    style: SceneStyle | None = None
    noise: float | None = None
    degrades: str | None = None

    def cases(self, n: int, *, seed: int) -> Iterator[Case]:
        """Test cases of this arm, of handwriting that no fit has read."""
        for case in get_world("digits").cases(n, seed=seed, pool="test", kinds=KINDS, style=self.style):
            yield case if self.noise is None or case.scene is None else replace(case, scene=replace(case.scene, noise=self.noise))


SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        Shift("full"),
        Shift("snapkv-20", Budget("snapkv", ratio=0.2), degrades="cache"),
        Shift("snapkv-50", Budget("snapkv", ratio=0.5), degrades="cache"),
        Shift("snapkv-6", Budget("snapkv", ratio=0.06), degrades="cache"),
        Shift("coverage-12", Budget("coverage", ratio=0.12), degrades="cache"),
        Shift("coverage-50", Budget("coverage", ratio=0.5), degrades="cache"),
        Shift("coverage-6", Budget("coverage", ratio=0.06), degrades="cache"),
        Shift("heavy-noise", noise=HEAVY_NOISE, degrades="image"),
        Shift("covered", style=SceneStyle(cover_share=0.9), degrades="image"),
        Shift("sight-fails", style=SceneStyle(seven_blue=0.0, caption_share=0.0)),
        Shift("text-fails", style=SceneStyle(caption_share=1.0, caption_digit=0.0)),
        Shift("grid-4x4", style=SceneStyle(rows=4, columns=4)),
    )
}
"""By name. The committed probe set was fitted under the whole cache, snapkv and coverage at 20 and 12 %, random at 40 %, 3 x 3 grids.
`covered`: nearly every scene hides a cell where the question allows it; `sight-fails`, `text-fails`: the learned prior never holds."""


def get_shift(name: str) -> Shift:
    """The arm of that name.

    Raises:
        ProbesError: there is none; the message lists the names.
    """
    try:
        return SHIFTS[name]
    except KeyError:
        raise ProbesError(f"unknown arm {name!r}: choose among {', '.join(SHIFTS)}") from None
