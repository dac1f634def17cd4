"""Recording the rows of one arm in chunks, so that an interrupted run goes on where it was."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from introspect.engine import Engine
from introspect_probes.studies.arms import ARMS, Arm, cases_of
from introspect_probes.studies.rows import Rows, answer_rows
from introspect_probes.worlds.digits import Pool

CHUNK = 400
FIT_POOLS: tuple[Pool, ...] = ("probe", "calibration")
TEST_POOL: Pool = "test"
NOISES = tuple(round(0.05 * step, 2) for step in range(1, 41))
"""Levels among which the control's noise is chosen (standard deviation of the pixels, share of full scale)."""
NOISE_CASES = 400


def record_rows(engine: Engine, arm: Arm, pool: Pool, n: int, folder: Path, *, seed: int, noise: float | None = None) -> Rows:
    """The rows of `n` cases of a pool; what lies in `folder` already is read, not answered again.

    A longer run goes on where a shorter one ended, since a case depends on nothing but seed, pool and number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in tqdm(range(0, n, CHUNK), desc=f"{arm.name}, {pool}", unit="chunk", leave=False):
        count = min(CHUNK, n - start)
        noisy = "" if noise is None else f"-{noise:g}"
        path = folder / f"{arm.name}{noisy}-{pool}-{seed}-{start:06d}-{count}.safetensors"
        if not path.exists():
            cases = list(cases_of(pool, count, seed=seed, start=start, noise=noise))
            answer_rows(engine, arm, cases, first=start).save(path)
        parts.append(Rows.load(path))
    return Rows.joined(parts)


def matched_noise(engine: Engine, arm: Arm, folder: Path, *, seed: int) -> float | None:
    """The noise under which the full cache answers as often rightly as the arm that `arm` is matched to.

    Found by bisection over `NOISES` on the first `NOISE_CASES` cases of the first fit pool; accuracy falls with noise.

    Returns:
        The level whose accuracy comes closest, or `None` where the arm's pictures are to be clear.
    """
    if arm.matched is None:
        return None
    pool = FIT_POOLS[0]
    target = float(record_rows(engine, ARMS[arm.matched], pool, NOISE_CASES, folder, seed=seed).correct.mean())
    found: dict[int, float] = {}

    def accuracy(level: int) -> float:
        if level not in found:
            rows = record_rows(engine, arm, pool, NOISE_CASES, folder, seed=seed, noise=NOISES[level])
            found[level] = float(rows.correct.mean())
        return found[level]

    low, high = 0, len(NOISES) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if accuracy(middle) > target else (low, middle)
    return NOISES[min((low, high), key=lambda level: abs(accuracy(level) - target))]
