"""Metrics count what happened, by the names that dashboards of LLM servers know."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families


def read(url):
    """All samples by name and labels."""
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name.removeprefix("introspect_"), *sorted(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture(scope="module")
def own(settings, backend, make):
    fresh = settings.model_copy(update={"port": make.free_port()})
    with make.running(fresh, backend) as (url, app):
        yield url, app, fresh


def test_an_answer_is_counted_once_in_every_measure(own, make):
    url, app, settings = own
    before = read(url)
    body = {"model": settings.model, "messages": make.messages(), "max_tokens": 5, "introspection": True}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    after = read(url)
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change["generation_tokens_total",] == 5
    assert change["prompt_tokens_total",] == answer["usage"]["prompt_tokens"]
    assert change["request_success_total", "length"] == 1
    assert change["time_to_first_token_seconds_count",] == change["e2e_request_latency_seconds_count",] == 1
    assert change["inter_token_latency_seconds_count",] == 4
    assert change["request_queue_and_prefill_seconds_count",] == 1
    assert change["answers_kept",] == 1
    assert after["answers_kept_bytes",] == app.state.service.records.bytes > 0
    assert after["num_requests_waiting",] == 0
    parts = (
        after["request_queue_and_prefill_seconds_sum",],
        after["time_to_first_token_seconds_sum",],
        after["e2e_request_latency_seconds_sum",],
    )
    assert 0 < parts[0] <= parts[1] <= parts[2]
    spread = after["inter_token_latency_seconds_sum",]
    assert 0 < spread <= parts[2] - parts[1] + 1e-6, "the first token and the times between them are parts of the whole"


def test_the_stream_s_counters_are_those_of_the_bus(own):
    url, app, _ = own
    counters, after = app.state.service.bus.counters, read(url)
    assert after["events_published_total",] == counters.published > 0
    assert after["events_dropped_total", "step_overflow"] == after["events_dropped_total", "kept_overflow"] == 0
    assert after["stream_connected",] == 1
    counters.dropped["step_overflow"] += 3
    assert read(url)["events_dropped_total", "step_overflow"] == 3


def test_a_refused_request_is_a_failure_and_no_success(own):
    url, _, settings = own
    before = read(url)
    body = {"model": settings.model, "messages": [{"role": "user", "content": "<image>"}], "max_tokens": 5}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    after = read(url)
    assert after["request_failure_total", "invalid_request"] - before.get(("request_failure_total", "invalid_request"), 0) == 1
    assert after.get(("request_success_total", "length")) == before.get(("request_success_total", "length"))
