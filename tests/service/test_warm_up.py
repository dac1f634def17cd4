"""The first answer that somebody waits for is not the first one of all."""

from __future__ import annotations

from dataclasses import replace

from introspect.errors import RequestError
from introspect_service.warm_up import TOKENS, warm_up


def test_it_takes_more_steps_than_the_engine_waits_for_and_leaves_nothing_behind(backend):
    from introspect.forward import RECORD_AFTER

    assert warm_up(backend, lambda: False) == TOKENS + 1 > RECORD_AFTER + 1  # the closing step too
    assert backend.engine.kv_bytes.allocated == 0


def test_it_ends_when_the_service_is_told_to_stop(backend):
    asked = []

    def is_enough():
        asked.append(True)
        return len(asked) == 3

    assert warm_up(backend, is_enough) == 3


def test_a_model_that_cannot_take_it_is_served_all_the_same(backend):
    class Refuses:
        def generate(self, _requests):
            raise RequestError("no pictures here")
            yield

    assert warm_up(replace(backend, engine=Refuses()), lambda: False) == 0
