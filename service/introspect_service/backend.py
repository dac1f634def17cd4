"""What answers: a model, its engine and the probes that fit it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from introspect.async_engine import AsyncEngine
from introspect.engine import Engine
from introspect.heads.visual_heads import kv_head_scores
from introspect.loading import LoadedModel, load_model
from introspect.policies import available_policies, get_policy
from introspect_kernels import feature_schema_hash
from introspect_probes.errors import ProbesError
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.training_free import TrainingFree
from introspect_service.errors import ServiceError
from introspect_service.process_memory import bound_arenas
from introspect_service.settings import Settings

logger = logging.getLogger(__name__)

SMALL = 30_000_000
"""Parameters of a model below which one thread is used on a CPU. The embedded one has three million; `introspect bench service`
measures it with one thread and with one a core."""


@dataclass(frozen=True)
class Backend:
    """A loaded model and who scores its answers."""

    model: LoadedModel
    engine: AsyncEngine
    scorer: ProbeSet | TrainingFree
    feature_schema: str


def load_backend(settings: Settings) -> Backend:
    """Load what `settings` name.

    Raises:
        ServiceError: there is no such policy.
        IntrospectError: the model cannot be loaded, or the policy needs visual-head scores that it does not have.
        ProbesError: the probe set that was named cannot be read, or was not fitted for this model.
    """
    bound_arenas()
    policy = settings.budget.policy
    if policy not in available_policies():
        raise ServiceError(f"policy: expected one of {', '.join(available_policies())}, got {policy!r}")
    model = load_model(settings.model, device=settings.device, heads=Path(settings.heads) if settings.heads else None)
    if get_policy(policy).needs_head_scores:
        kv_head_scores(model)
    use_threads(model, settings.threads)
    engine = AsyncEngine(Engine(model, max_batch=settings.max_batch))
    scorer = choose_scorer(model, settings)
    if isinstance(scorer, ProbeSet):
        scorer.prepare()
    return Backend(model, engine, scorer, feature_schema_hash())


def use_threads(model: LoadedModel, threads: int | None) -> None:
    """Let torch compute with so many threads; with one where `model` is small and nobody says.

    Threads of a small operator wait for each other longer than they compute, and with Python's threads for the cores.
    """
    if threads is None and model.device.type == "cpu" and sum(p.numel() for p in model.model.parameters()) < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


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
