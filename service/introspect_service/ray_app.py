"""The same app on Ray Serve: `serve run introspect_service.ray_app:application replicas=2`. Needs the extra `ray`.

Settings are the `INTROSPECT_*` variables of the machines that replicas run on. Every replica loads the model, has a
`source` of its own, and publishes to the one stream.
"""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from introspect_service.app import create_app
from introspect_service.errors import ServiceError
from introspect_service.settings import Settings


class Arguments(BaseModel):
    """How many replicas, and what of a machine each is given."""

    replicas: int = 2
    cpus: float = 1
    gpus: float = 0


def build() -> FastAPI:
    """The app of one replica; Ray calls it there."""
    return create_app(Settings(replica=serve.get_replica_context().replica_id.unique_id))


def application(arguments: Arguments) -> Application:
    """What `serve run` and `serve.run` take.

    Raises:
        ServiceError: each replica would have a stream of its own.
    """
    settings = Settings()
    if settings.redis == "embedded":
        raise ServiceError("replicas share one stream: expected INTROSPECT_REDIS to be an address or off, got embedded")
    deployment = serve.deployment(
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # The app itself turns away what is too much, with a Retry-After; open event streams are requests too.
        max_ongoing_requests=settings.max_batch + settings.queue_depth + settings.max_viewers,
    )

    @serve.ingress(build)
    class Introspect:
        """One replica."""

    return deployment(Introspect).bind()
