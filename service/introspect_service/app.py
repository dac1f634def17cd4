"""The app: `create_app()` for any ASGI server, with everything that it needs made in its lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from introspect.policies import available_policies
from introspect_service import chat, introspection, live, page, probe_routes
from introspect_service.admission import ApiKeys, RateLimit
from introspect_service.backend import Backend, load_backend
from introspect_service.bus import OffBus, RedisBus, SignalBus
from introspect_service.embedded_valkey import EmbeddedValkey
from introspect_service.error_handlers import install_error_handlers
from introspect_service.errors import ErrorBody, ServiceError
from introspect_service.labels import LabelStore
from introspect_service.limits import BodyLimit, RequestId, Scope, SendLimit
from introspect_service.metrics import Metrics
from introspect_service.probe_sets import ProbeSets
from introspect_service.records import RecordStore
from introspect_service.responses import ModelCard, ModelIntrospection, ModelList
from introspect_service.runner import Runner
from introspect_service.settings import Settings
from introspect_service.sse import Viewers
from introspect_service.state import Service, ServiceDep

if TYPE_CHECKING:
    from introspect_service.remote_images import RemoteImages
    from introspect_service.telemetry import Telemetry

router = APIRouter()


def create_app(settings: Settings | None = None, backend: Backend | None = None) -> FastAPI:
    """Make the app.

    Args:
        settings: how it is configured; from `INTROSPECT_*` variables where absent.
        backend: a model that is loaded already; else `settings` say which to load when the app starts.
    """
    settings = settings or Settings()
    telemetry = make_telemetry(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if settings.redis == "embedded":
                valkey = EmbeddedValkey(settings.redis_port)
                await asyncio.to_thread(valkey.start)
                stack.callback(valkey.stop)
            loaded = backend
            if loaded is None:
                loaded = await asyncio.to_thread(load_backend, settings)
                stack.push_async_callback(asyncio.to_thread, loaded.engine.close)
            bus = make_bus(settings)
            await bus.start()
            stack.push_async_callback(bus.close)
            if telemetry is not None:
                stack.push_async_callback(asyncio.to_thread, telemetry.close)
            runner = make_runner(settings, loaded, telemetry)
            runner.start(asyncio.get_running_loop())
            stack.push_async_callback(asyncio.to_thread, runner.close)
            labels = await asyncio.to_thread(LabelStore, Path(settings.traces), loaded.model) if settings.traces else None
            records, viewers = RecordStore(settings.keep_answers, settings.keep_bytes), Viewers(settings.max_viewers)
            probes = ProbeSets(
                loaded, Path(settings.probe_folder) if settings.probe_folder else None, allow_mismatch=settings.allow_mismatch
            )
            metrics = Metrics(runner, loaded.engine, bus, records, viewers, probes)
            app.state.service = Service(
                settings, loaded, probes, runner, bus, records, viewers, metrics, labels, make_remote_images(settings)
            )
            yield

    app = FastAPI(title="Introspect", version=_version(), lifespan=lifespan)
    install_error_handlers(app)
    app.include_router(router)
    for part in (chat, introspection, live, probe_routes, page):
        app.include_router(part.router)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.client_seconds)
    app.add_middleware(RateLimit, per_minute=settings.rate_limit, refused=_count_refusal)
    app.add_middleware(ApiKeys, keys=settings.opening_keys)
    app.add_middleware(SendLimit, seconds=settings.client_seconds)
    app.add_middleware(RequestId)  # outermost but for the caller's trace: what is refused has an id too
    if telemetry is not None:
        from introspect_service.telemetry import IncomingContext

        app.add_middleware(IncomingContext)
    return app


def _count_refusal(scope: Scope) -> None:
    scope["app"].state.service.metrics.rejections.labels("rate_limit").inc()


def make_telemetry(settings: Settings) -> Telemetry | None:
    """Where spans go; nothing where `settings` want none.

    Raises:
        ServiceError: OpenTelemetry is not installed.
    """
    if not settings.otel:
        return None
    try:
        from introspect_service.telemetry import Telemetry  # needs an extra
    except ImportError as problem:
        raise ServiceError("INTROSPECT_OTEL needs OpenTelemetry: pip install 'introspect-mllm[otel]'") from problem
    return Telemetry.start()


def make_runner(settings: Settings, backend: Backend, telemetry: Telemetry | None) -> Runner:
    """What runs the requests, with spans where there is telemetry."""
    if telemetry is None:
        return Runner(backend.engine, queue_depth=settings.queue_depth, max_batch=settings.max_batch)
    from introspect_service.telemetry import TracedRunner

    model, depth, batch = backend.model.name, settings.queue_depth, settings.max_batch
    return TracedRunner(backend.engine, queue_depth=depth, max_batch=batch, telemetry=telemetry, model=model)


def make_bus(settings: Settings) -> SignalBus:
    """The bus that `settings` name."""
    if settings.redis_url is None:
        return OffBus()
    return RedisBus(settings.redis_url, max_length=settings.stream_max_length, queue_length=settings.event_queue)


def make_remote_images(settings: Settings) -> RemoteImages | None:
    """What fetches pictures from the hosts that `settings` list; nothing where they list none."""
    if not settings.image_hosts:
        return None
    from introspect_service.remote_images import RemoteImages  # needs an extra

    return RemoteImages(
        settings.image_hosts,
        max_bytes=settings.max_image_bytes,
        total_bytes=settings.max_body_bytes,
        seconds=settings.remote_image_seconds,
        allow_http=settings.remote_image_http,
    )


def _version() -> str:
    try:
        return version("introspect-mllm")
    except PackageNotFoundError:  # run from a source tree
        return "0"


@router.get("/health/live", include_in_schema=False)
@router.get("/livez")
async def livez() -> dict[str, str]:
    """Whether the event loop turns."""
    return {"status": "ok"}


@router.get("/health", include_in_schema=False)
@router.get("/health/ready", include_in_schema=False)
@router.get("/readyz")
async def readyz(service: ServiceDep) -> JSONResponse:
    """Whether requests are taken; a stream that is away makes the service poorer, not unready."""
    counters, bus = service.bus.counters, service.bus
    draining = service.draining.is_set()
    engine = service.backend.engine
    ready = service.runner.alive and engine.alive and not draining
    body: dict[str, Any] = {
        "status": "ready" if ready else "draining" if draining else "stopped" if engine.alive else "engine_down",
        "model": service.backend.model.name,
        "probe_set": service.probes.scorer.name,
        "queue": {"waiting": service.runner.waiting, "depth": service.settings.queue_depth},
        "engine": {"alive": engine.alive, "restarts": engine.restarts},
        "stream": {
            "mode": service.settings.redis if service.settings.redis in ("embedded", "off") else "external",
            "connected": bus.connected,
            "waiting": bus.waiting,
            "published": counters.published,
            "failed_writes": counters.failed_writes,
            "dropped": dict(counters.dropped),
        },
    }
    return JSONResponse(body, status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDep) -> Response:
    """Metrics in Prometheus's text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(service: ServiceDep) -> ModelList:
    """The model that is served."""
    return ModelList(data=[_card(service)])


@router.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
async def model(model: str, service: ServiceDep) -> ModelCard:
    """The model of that name."""
    service.check_model(model)
    return _card(service)


def _card(service: Service) -> ModelCard:
    loaded = service.backend.model
    return ModelCard(
        id=loaded.name,
        created=service.started,
        introspection=ModelIntrospection(
            fingerprint=loaded.fingerprint,
            max_context=loaded.max_context,
            num_layers=loaded.num_layers,
            num_heads=loaded.num_heads,
            num_kv_heads=loaded.num_kv_heads,
            policies=list(available_policies()),
            probe_set=service.probes.scorer.name,
        ),
    )
