"""What a running service consists of, and how a route gets at it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from introspect_service.backend import Backend
from introspect_service.bus import SignalBus
from introspect_service.errors import ApiError
from introspect_service.labels import LabelStore
from introspect_service.metrics import Metrics
from introspect_service.probe_sets import ProbeSets
from introspect_service.records import RecordStore
from introspect_service.runner import Runner
from introspect_service.settings import Settings
from introspect_service.sse import Viewers

if TYPE_CHECKING:  # needs an extra
    from introspect_service.remote_images import RemoteImages

DECODERS = 2
"""Requests whose pictures are decoded at the same time."""


@dataclass(frozen=True)
class Service:
    """The parts of a running service; `draining` is set when it is told to stop."""

    settings: Settings
    backend: Backend
    probes: ProbeSets
    runner: Runner
    bus: SignalBus
    records: RecordStore
    viewers: Viewers
    metrics: Metrics
    labels: LabelStore | None = None
    remote_images: RemoteImages | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    decoders: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DECODERS))

    def check_model(self, name: str) -> None:
        """Refuse a model that is not served here.

        Raises:
            ApiError: 404.
        """
        if name != self.backend.model.name:
            message = f"The model {name[:100]!r} is not served here; see GET /v1/models."
            raise ApiError(404, message, param="model", code="model_not_found")


def get_service(request: Request) -> Service:
    """The service behind the app; set by its lifespan."""
    return cast("Service", request.app.state.service)


ServiceDep = Annotated[Service, Depends(get_service)]
