"""Which probes are used, and that what does not fit is refused at start."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from introspect.async_engine import AsyncEngine
from introspect_probes.errors import ProbesError
from introspect_probes.training_free import TrainingFree
from introspect_service.backend import choose_scorer, load_backend
from introspect_service.engine_process import EngineProcess
from introspect_service.errors import ServiceError
from introspect_service.settings import Settings
from introspect_service.threads import SMALL, use_threads


@pytest.mark.parametrize("probes", ["off", "embedded"])
def test_a_model_that_the_embedded_probes_do_not_fit_is_scored_without_them(backend, probes):
    assert isinstance(choose_scorer(backend.model, Settings(probes=probes)), TrainingFree)


def test_a_probe_set_that_was_named_and_cannot_be_used_is_an_error(backend, tmp_path):
    with pytest.raises(ProbesError, match="introspect train"):
        choose_scorer(backend.model, Settings(probes=str(tmp_path)))


def test_a_policy_that_is_not_there_is_refused_before_the_model_is_loaded():
    with pytest.raises(ServiceError, match=r"snapkv.*'best'"):
        load_backend(Settings(model="./no-such-model", policy="best", kv_budget="64"))


def test_a_small_model_computes_with_one_thread_unless_told_otherwise():
    small, large = (SimpleNamespace(device=torch.device("cpu"), model=torch.nn.Linear(SMALL // 1000, n, device="meta")) for n in (9, 1001))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_threads(small, None)
        assert torch.get_num_threads() == 1
        use_threads(small, 2)
        assert torch.get_num_threads() == 2
        use_threads(large, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_the_engine_is_where_the_settings_want_it(model_folder, kind):
    made = load_backend(Settings(model=str(model_folder), probes="off", redis="off", engine=kind, threads=1))
    with closing(made.engine):
        assert (made.model.device.type, type(made.engine)) == {"process": ("meta", EngineProcess), "thread": ("cpu", AsyncEngine)}[kind]


def test_an_engine_is_ended_where_no_probe_set_fits_it(model_folder, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(AsyncEngine, "close", lambda engine: closed.append(engine))
    with pytest.raises(ProbesError):
        load_backend(Settings(model=str(model_folder), probes=str(tmp_path), redis="off", engine="thread"))
    assert len(closed) == 1
