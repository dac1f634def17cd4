"""The service's benchmark measures what it says, on a service of the tests' own."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import CliRunner

from introspect_service.bench_service import _ratios, memory
from introspect_service.cli import app
from introspect_service.measure.added import events_per_second
from introspect_service.measure.client import SHORT, Client, at_once, body
from introspect_service.measure.figures import spread


def test_every_token_of_a_streamed_answer_is_timed_and_counted(settings, url):
    assert url.endswith(str(settings.port))
    question = body(SHORT, stream=True, max_tokens=5)
    done = at_once(2, lambda sent: sent < 3, lambda: Client(settings.port, settings.model), question)
    assert [(answer.status, answer.tokens, answer.published) for answer in done] == [(200, 5, True)] * 3
    for answer in done:
        assert len(answer.arrivals) == 5
        assert answer.arrivals == sorted(answer.arrivals)
        assert 0 < answer.arrivals[0] < answer.arrivals[-1] <= answer.seconds


@pytest.mark.usefixtures("url")
def test_a_refused_request_counts_as_failed(settings):
    (refused,) = at_once(1, lambda sent: sent < 1, lambda: Client(settings.port, "another"), body(SHORT, stream=False))
    assert (refused.status, refused.tokens) == (404, 0)


@pytest.mark.usefixtures("url")
def test_memory_is_read_before_and_after_each_tenth(settings):
    class Service:
        count = 0

        def client(self):
            return Client(settings.port, settings.model)

        def memory_mb(self):
            self.count += 1
            return float(self.count)

    found = memory(Service(), 20, warm_requests=3)
    assert found.pop("seconds") > 0
    assert found == {
        "case": "memory", "requests": 20, "warm_requests": 3, "memory_mb_after_each_tenth": [float(n) for n in range(1, 12)],
        "growth_ratio": 5.0,
    }  # fmt: skip


def test_the_rate_of_events_counts_those_that_the_server_confirmed(broker):
    found = asyncio.run(events_per_second(broker.url, 250))
    assert (found["events"], found["dropped"], found["tokens_an_event"]) == (250, 0, 16)
    assert found["per_second"] > 0


def test_figures_of_times_are_in_milliseconds():
    assert spread([0.001] * 98 + [0.002, 1.0])["median_ms"] == 1.0
    assert spread([0.001, 0.003])["max_ms"] == 3.0
    assert spread([n / 1000 for n in range(101)])["p99_ms"] == 99.0


@pytest.mark.parametrize(("ratio", "met"), [(0.93, True), (0.92, False)])
def test_aims_are_judged_by_what_was_measured(ratio, met):
    cases = [
        {"case": "added time a token", "both": {"median_ms": 0.2, "p99_ms": 0.4}},
        {"case": "throughput", "streams": 1, "ratio": ratio},
        {"case": "throughput", "streams": 8, "ratio": 0.5},
        {"case": "memory", "growth_ratio": 1.01},
    ]
    found = _ratios(cases)
    assert found["overhead_batch_8"] == 1.0
    assert {aim["measure"]: aim["met"] for aim in found["aims"]} == {
        "added_median_ms": False, "added_p99_ms": True, "throughput_ratio_1": met, "throughput_ratio_8": False,
        "memory_growth_ratio": True,
    }  # fmt: skip


def test_a_row_of_one_case_has_the_aims_that_it_measured():
    found = _ratios([{"case": "throughput", "streams": 8, "ratio": 0.8}])
    assert found["overhead_batch_8"] == 0.25
    assert [aim["measure"] for aim in found["aims"]] == ["throughput_ratio_8"]


def test_a_case_that_there_is_not_is_refused():
    result = CliRunner().invoke(app, ["bench", "service", "--case", "added", "--case", "speed"])
    assert result.exit_code == 1
    assert "expected added, throughput, threads, latency, memory, faults, got speed" in result.output
