"""The arms of the study of what only the kernel knows: what is taken from the model before it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from introspect.types import Budget
from introspect_probes.errors import ProbesError
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.scene import SceneStyle
from introspect_probes.worlds.world import get_world

STYLE = SceneStyle(caption_share=0.0, cover_share=0.0, clarity={"clear": 1.0})
"""Clear pictures without captions or covers: what an answer gets wrong, eviction broke (or, in the control, noise)."""
KINDS = ("digit_at",)


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: what results are filed under.
        policy: who chooses the entries.
        kept: share of the prompt that is kept; `None` where nothing is evicted.
        matched: the arm whose accuracy the noise of this one's pictures is chosen to match; `None` for clear pictures.
    """

    name: str
    policy: str
    kept: float | None
    matched: str | None = None

    def budget(self, number: int) -> Budget:
        """The budget of case `number`: policies that draw, draw anew for each."""
        return Budget() if self.kept is None else Budget(self.policy, ratio=self.kept, seed=number)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("random-50", "random", 0.50),
        Arm("random-75", "random", 0.25),
        Arm("random-90", "random", 0.10),
        Arm("agnostic-75", "keydiff", 0.25),
        Arm("snapkv-75", "snapkv", 0.25),
        Arm("noise-random-75", "full", None, matched="random-75"),
        Arm("noise-agnostic-75", "full", None, matched="agnostic-75"),
    )
}
"""By name; the number is the percentage of the prompt that is evicted. The last two evict nothing: controls of equal accuracy."""


def get_arm(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ProbesError: there is none; the message lists the names.
    """
    try:
        return ARMS[name]
    except KeyError:
        raise ProbesError(f"unknown arm {name!r}: choose among {', '.join(ARMS)}") from None


def cases_of(pool: Pool, n: int, *, seed: int, start: int = 0, noise: float | None = None) -> Iterator[Case]:
    """Questions for the digit of one cell; with `noise`, that much in every picture (share of full scale)."""
    for case in get_world("digits").cases(n, seed=seed, pool=pool, kinds=KINDS, style=STYLE, start=start):
        yield case if noise is None or case.scene is None else replace(case, scene=replace(case.scene, noise=noise))
