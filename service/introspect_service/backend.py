"""What answers: a model, its engine and the probes that fit it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from introspect.async_engine import AsyncEngine
from introspect.callers import ManyCallers
from introspect.engine import Engine
from introspect.heads.visual_heads import kv_head_scores
from introspect.loading import LoadedModel, load_model
from introspect.policies import available_policies, get_policy
from introspect_kernels import feature_schema_hash
from introspect_probes.errors import ProbesError
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.training_free import TrainingFree
from introspect_service.errors import ServiceError
from introspect_service.launching import Launched
from introspect_service.process_memory import bound_arenas
from introspect_service.settings import Settings
from introspect_service.threads import use_threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A model, without its weights where its engine has them elsewhere, and who scores its answers."""

    model: LoadedModel
    engine: ManyCallers
    scorer: ProbeSet | TrainingFree
    feature_schema: str


def load_backend(settings: Settings, launched: Launched | None = None) -> Backend:
    """Load what `settings` name.

    Args:
        settings: what to load.
        launched: the engine's process, where it has been begun already.

    Raises:
        ServiceError: there is no such policy.
        IntrospectError: the model cannot be loaded, or the policy needs visual-head scores that it does not have.
        ProbesError: the probe set that was named cannot be read, or was not fitted for this model.
    """
    bound_arenas()
    with ExitStack() as stack:
        if launched is not None:
            stack.callback(launched.end)
        policy = settings.budget.policy
        if policy not in available_policies():
            raise ServiceError(f"policy: expected one of {', '.join(available_policies())}, got {policy!r}")
        engine = load_engine(settings, launched)
        stack.pop_all()
        stack.callback(engine.close)
        model = engine.loaded
        if get_policy(policy).needs_head_scores:
            kv_head_scores(model)
        scorer = choose_scorer(model, settings)
        if isinstance(scorer, ProbeSet):
            scorer.prepare()
        stack.pop_all()
    return Backend(model, engine, scorer, feature_schema_hash())


def load_engine(settings: Settings, launched: Launched | None = None) -> ManyCallers:
    """The engine that `settings` ask for, where they ask for it; see `load_backend`.

    Raises:
        IntrospectError: the model cannot be loaded.
    """
    if settings.engine == "process":
        from introspect_service.engine_process import EngineProcess
        from introspect_service.wire import Opening

        with_json = settings.log_format == "json"
        opening = Opening(settings.model, settings.device, settings.heads, settings.threads, settings.max_batch, json_logs=with_json)
        return EngineProcess(opening, launched)
    model = load_model(settings.model, device=settings.device, heads=Path(settings.heads) if settings.heads else None)
    use_threads(model, settings.threads)
    return AsyncEngine(Engine(model, max_batch=settings.max_batch))


def choose_scorer(model: LoadedModel, settings: Settings) -> ProbeSet | TrainingFree:
    """The probe set that `settings` name, or training-free scores where none is asked for or the embedded one does not fit.

    Raises:
        ProbesError: a probe set was named that cannot be read or was not fitted for this model.
    """
    if settings.probes == "off":
        return TrainingFree(model, "probes are off")
    try:
        return load_probe_set(settings.probes).check(model, allow_mismatch=settings.allow_mismatch)
    except ProbesError as problem:
        if settings.probes != "embedded":
            raise
        logger.info("the embedded probe set is not used: %s", problem)
        return TrainingFree(model)
