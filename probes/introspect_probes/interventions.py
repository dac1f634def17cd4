"""Strategy labels from causes: what moves a claim is what the model leaned on.

Each intervention is teacher-forced: the answer up to the claim is kept, one
thing is changed, and the fall of the claim token's log-probability is averaged
over donors. Causes are *perceiving* (the evidence in the picture, against as
many other cells), *reading* (the marked context) and *self-conditioned* (an
earlier word of the answer, corrupted rather than removed). Blank and grey
pictures are out of distribution and are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from introspect.engine import Engine
from introspect.types import Budget, Request, SamplingParams
from introspect_probes.case_budget import budget_for
from introspect_probes.signals import StrategyLabel
from introspect_probes.traces import ClaimLabel, Trace
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.edits import Change, edit_context, edit_distractors, edit_evidence
from introspect_probes.worlds.scene import COLOR_NAMES

NUM_DONORS = 8
MIN_SHIFT, MIN_RATIO = 0.5, 2.0
"""A cause moves the token by at least half a nat, and twice as much as the next cause."""
MAX_CLAIMS = 4
"""Claims of one answer that are intervened on, spread evenly; a description has over a dozen."""

_CHANGES: dict[str, Change] = {"digit": "digit", "color": "color", "sum": "digit"}
_CAUSES: dict[str, StrategyLabel] = {"evidence": "perceiving", "context": "reading", "prefix": "self-conditioned"}


@dataclass(frozen=True)
class _Probe:
    """One teacher-forced run: which claim of which trace, which intervention, which donor."""

    trace: int
    claim: int
    name: str
    donor: int
    request: Request
    forced: tuple[int, ...]


def strategy_of(shifts: dict[str, float], source: str) -> StrategyLabel | None:
    """The state that shifts (nats, by intervention) stand for; `None` where no single cause stands out.

    `recalling` and `guessing` are what moves under no intervention, told apart by
    provenance: a fact that was taught, and one that never was.
    """
    causes = {name: shifts.get(name, 0.0) for name in _CAUSES}
    if causes["evidence"] < MIN_RATIO * shifts.get("distractors", 0.0):
        causes["evidence"] = 0.0
    (first, largest), (_, second) = sorted(causes.items(), key=lambda item: -item[1])[:2]
    if largest >= MIN_SHIFT and largest >= MIN_RATIO * second:
        return _CAUSES[first]
    if max(shifts.values(), default=0.0) < MIN_SHIFT and source in ("memory", "guess"):
        return "recalling" if source == "memory" else "guessing"
    return None


def measure_shifts(engine: Engine, cases: Sequence[Case], traces: Sequence[Trace]) -> list[Trace]:
    """The traces with `shifts` on up to `MAX_CLAIMS` claims of each answer.

    Every intervention is run under the trace's own policy and budget.
    """
    probes = [p for i, (case, trace) in enumerate(zip(cases, traces, strict=True)) for p in _probes(i, case, trace)]
    scored = engine.score([p.request for p in probes], [p.forced for p in probes]) if probes else []
    falls: dict[tuple[int, int], dict[str, list[float]]] = {}
    for probe, steps in zip(probes, scored, strict=True):
        claim = traces[probe.trace].claims[probe.claim]
        before, after = traces[probe.trace].steps[claim.token].logits, steps[claim.token].logits
        if before is None or after is None:
            continue
        falls.setdefault((probe.trace, probe.claim), {}).setdefault(probe.name, []).append(before.logprob - after.logprob)
    return [
        replace(trace, claims=tuple(_labelled(claim, falls.get((i, c))) for c, claim in enumerate(trace.claims)))
        for i, trace in enumerate(traces)
    ]


def _labelled(claim: ClaimLabel, falls: dict[str, list[float]] | None) -> ClaimLabel:
    if falls is None:
        return claim
    mean = {name: float(np.mean(values)) for name, values in falls.items()}
    even = {name: float(np.mean(values[::2])) for name, values in falls.items()}
    odd = {name: float(np.mean(values[1::2] or values)) for name, values in falls.items()}
    return replace(claim, shifts=mean, halves=(even, odd))


def _probes(number: int, case: Case, trace: Trace) -> list[_Probe]:
    tokens = [s.token_id for s in trace.steps if s.token_id >= 0]
    rng = np.random.default_rng([*case.id.encode()])
    probes: list[_Probe] = []
    for index in _spread(len(trace.claims)):
        claim = trace.claims[index]
        forced = tuple(tokens[: claim.token + 1])
        for name, edit in _edits(case, claim).items():
            for donor in range(NUM_DONORS):
                edited = edit(rng)
                if edited is not None:
                    probes.append(_Probe(number, index, name, donor, _request(edited, trace, len(forced)), forced))
        for donor, corrupted in enumerate(_corrupted(trace, claim, tokens, rng)):
            probes.append(_Probe(number, index, "prefix", donor, _request(case, trace, len(corrupted)), corrupted))
    # A claim that nothing can be done to (no picture, no passage, nothing said before) stays unmeasured: provenance alone is no cause.
    return probes


def _edits(case: Case, claim: ClaimLabel) -> dict[str, Callable[[np.random.Generator], Case | None]]:
    change = _CHANGES.get(claim.kind, "both")
    pool: Pool = case.pool if case.pool in ("model", "probe", "calibration", "test") else "probe"  # type: ignore[assignment]
    edits: dict[str, Callable[[np.random.Generator], Case | None]] = {}
    cells = claim.evidence
    if case.scene is not None and cells and case.source == "image":
        edits["evidence"] = lambda rng: edit_evidence(case, cells, rng, pool, change)
        edits["distractors"] = lambda rng: edit_distractors(case, cells, rng, pool, change)
    elif case.scene is not None:
        seen = tuple(index for index, _ in case.scene.visible())  # a cover stays: what is under it is not shown
        edits["evidence"] = lambda rng: edit_evidence(case, seen, rng, pool, "both")
    if case.context:
        edits["context"] = lambda rng: edit_context(case, rng)
    return edits


def _corrupted(trace: Trace, claim: ClaimLabel, tokens: list[int], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The answer up to the claim with one earlier digit or colour replaced by another that the answers use."""
    earlier = [c for c in trace.claims if c.token < claim.token and c.kind in ("digit", "color")]
    alternatives = _alternatives(trace)
    runs = []
    for _ in range(NUM_DONORS if earlier else 0):
        chosen = earlier[int(rng.integers(len(earlier)))]
        others = [t for t in alternatives[chosen.kind] if t != tokens[chosen.token]]
        if others:
            changed = list(tokens[: claim.token + 1])
            changed[chosen.token] = others[int(rng.integers(len(others)))]
            runs.append(tuple(changed))
    return runs


def _alternatives(trace: Trace) -> dict[str, list[int]]:
    """Token ids of digits and of colours that were candidates somewhere in this answer."""
    found: dict[str, set[int]] = {"digit": set(), "color": set()}
    for claim in trace.claims:
        logits = trace.steps[claim.token].logits
        if claim.kind in found and logits is not None:
            count = 10 if claim.kind == "digit" else len(COLOR_NAMES)
            found[claim.kind] |= set(logits.top_ids[:count])
    return {kind: sorted(ids) for kind, ids in found.items()}


def _request(case: Case, trace: Trace, count: int) -> Request:
    budget = trace.prompt.budget
    limit = Budget() if budget.policy == "full" else Budget(budget.policy, entries=round(budget.nominal))
    return Request.ask(
        case.id,
        case.question,
        case.picture(),
        context=case.context,
        sampling=SamplingParams(max_tokens=count),
        budget=budget_for(trace.case_id, limit),
    )


def _spread(count: int) -> list[int]:
    """Up to `MAX_CLAIMS` indices, evenly spread over `count`."""
    if count <= MAX_CLAIMS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (MAX_CLAIMS - 1)) for i in range(MAX_CLAIMS)})
