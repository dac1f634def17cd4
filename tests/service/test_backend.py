"""Which probes are used, and that what does not fit is refused at start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from introspect_probes.errors import ProbesError
from introspect_probes.training_free import TrainingFree
from introspect_service.backend import SMALL, choose_scorer, load_backend, use_threads
from introspect_service.errors import ServiceError
from introspect_service.settings import Settings


@pytest.mark.parametrize("probes", ["off", "embedded"])
def test_a_model_that_the_embedded_probes_do_not_fit_is_scored_without_them(backend, probes):
    assert isinstance(choose_scorer(backend.model, Settings(probes=probes)), TrainingFree)


def test_a_probe_set_that_was_named_and_cannot_be_used_is_an_error(backend, tmp_path):
    with pytest.raises(ProbesError, match="introspect train"):
        choose_scorer(backend.model, Settings(probes=str(tmp_path)))


def test_a_policy_that_is_not_there_is_refused_before_the_model_is_loaded():
    with pytest.raises(ServiceError, match=r"snapkv.*'best'"):
        load_backend(Settings(model="./no-such-model", policy="best", kv_budget="64"))


def test_a_small_model_computes_with_one_thread_unless_told_otherwise(backend):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_threads(backend.model, None)
        assert torch.get_num_threads() == 1
        use_threads(backend.model, 2)
        assert torch.get_num_threads() == 2
        use_threads(SimpleNamespace(device=torch.device("cpu"), model=torch.nn.Linear(SMALL // 1000, 1001, device="meta")), None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
