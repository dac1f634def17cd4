"""`/v1/probes`: the probe sets of this server, and for its operator which of them scores new answers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from introspect_probes.probe_set import ProbeSet
from introspect_service.drift_watch import DriftReport
from introspect_service.errors import ErrorBody
from introspect_service.operator_key import OperatorDep
from introspect_service.probe_sets import NAME, ProbeSets
from introspect_service.signals import Sparse
from introspect_service.state import ServiceDep

router = APIRouter(prefix="/v1/probes")

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 409, 413, 500)}


class ProbeSetCard(Sparse):
    """One probe set.

    Attributes:
        id: by which it is chosen: the name of its folder; `initial`, what the service began with; `off`, training-free scores.
        active: whether new answers are scored with it.
        loaded: whether it is in memory; of others only the id is known.
        probe_set: the name that it gives itself, and that answers and events carry; absent where it is not calibrated.
        signals: what it tells.
        mismatch: why it does not fit the model, where it was made to score all the same.
    """

    id: str
    object: Literal["probe_set"] = "probe_set"
    active: bool
    loaded: bool
    probe_set: str | None = None
    signals: list[str] | None = None
    mismatch: str | None = None


class ProbeSetList(BaseModel):
    """All probe sets that can be chosen."""

    object: Literal["list"] = "list"
    data: list[ProbeSetCard]


class ProbeSetChoice(BaseModel):
    """A probe set by its id."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=NAME)]


@router.get("")
async def probe_sets(service: ServiceDep) -> ProbeSetList:
    """The probe sets that can be chosen."""
    probes = service.probes
    return ProbeSetList(data=[_card(probes, name) for name in await asyncio.to_thread(probes.ids)])


@router.get("/drift")
async def drift(service: ServiceDep) -> DriftReport:
    """Whether answers still look like those that the active probe set was calibrated on, since it became active."""
    return service.probes.drift.report()


@router.post("", dependencies=[OperatorDep], responses=_ERRORS)
async def load(choice: ProbeSetChoice, service: ServiceDep) -> ProbeSetCard:
    """Read a probe set from the server's folder, again where it was read before, and check that it fits. What is active stays so."""
    await asyncio.to_thread(service.probes.load, choice.id)
    return _card(service.probes, choice.id)


@router.post("/active", dependencies=[OperatorDep], responses=_ERRORS)
async def activate(choice: ProbeSetChoice, service: ServiceDep) -> ProbeSetCard:
    """Score new answers with a probe set, which is loaded first where it is not; one that does not fit changes nothing.

    Answers that were accepted before keep the set they began with.
    """
    await asyncio.to_thread(service.probes.activate, choice.id)
    return _card(service.probes, choice.id)


def _card(probes: ProbeSets, name: str) -> ProbeSetCard:
    scorer = probes.held(name)
    fitted = scorer if isinstance(scorer, ProbeSet) else None
    return ProbeSetCard(
        id=name,
        active=name == probes.active,
        loaded=scorer is not None,
        probe_set=scorer.name if scorer is not None else None,
        signals=_signals(fitted) if fitted is not None else None,
        mismatch=fitted.mismatch if fitted is not None else None,
    )


def _signals(fitted: ProbeSet) -> list[str]:
    optional = {
        "hallucination_risk": fitted.claims,
        "strategy": fitted.strategy,
        "in_domain": fitted.domain,
        "guarantee": fitted.guarantee,
    }
    return ["confidence", *(name for name, part in optional.items() if part is not None)]
