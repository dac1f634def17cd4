"""Spans and evaluation events of real answers, by the SDK's own in-memory exporters; and nothing of it where it is off."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import openai
import pytest
from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from introspect_service.app import create_app, make_runner, make_telemetry
from introspect_service.backend import load_backend
from introspect_service.errors import ServiceError
from introspect_service.runner import Runner
from introspect_service.settings import Settings

QUESTION = "what digit is at row 2 column 3 ?"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def exported():
    """What the process exports: spans and events. The process has one provider of each for good, as the API has it."""
    spans, events = InMemorySpanExporter(), InMemoryLogRecordExporter()
    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    loggers.add_log_record_processor(SimpleLogRecordProcessor(events))
    trace.set_tracer_provider(tracers)
    set_logger_provider(loggers)
    return spans, events


@pytest.fixture(scope="module")
def traced(exported, make):
    """The embedded model with its probes behind a service with telemetry: a client, and what was exported."""
    settings = Settings(redis="off", otel=True, port=make.free_port())
    with make.running(settings, load_backend(settings)) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), *exported


@pytest.fixture(autouse=True)
def emptied(exported):
    """Each test begins with nothing exported."""
    for exporter in exported:
        exporter.clear()


def answers(spans):
    """Our spans; FastAPI may make some of its own around them."""
    return [span for span in spans.get_finished_spans() if span.instrumentation_scope.name == "introspect_service"]


def ancestor(span, spans):
    """The id of the outermost span above `span`, which is nobody's child here."""
    parents = {each.context.span_id: each.parent.span_id for each in spans.get_finished_spans()}
    outermost = span.context.span_id
    while outermost in parents:
        outermost = parents[outermost]
    return f"{outermost:016x}"


def ask(client, make, **options):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    return client.chat.completions.create(model="embedded", messages=make.messages(QUESTION), extra_headers=headers, **options)


def test_an_answer_is_a_span_of_the_callers_trace(traced, make):
    client, spans, _ = traced
    answer = ask(client, make, max_tokens=3, seed=7, temperature=0.5)
    (span,) = answers(spans)
    said = dict(span.attributes)
    assert (span.name, span.kind) == ("chat embedded", SpanKind.INTERNAL)
    assert f"{span.context.trace_id:032x}" == TRACE
    until = time.monotonic() + 10
    while ancestor(span, spans) != PARENT:  # FastAPI's own spans end when the response is sent, which the client may see before
        assert time.monotonic() < until
        time.sleep(0.01)
    assert 0 < said.pop("gen_ai.response.time_to_first_chunk") < 60
    effective = said.pop("introspect.kv_budget.effective")
    assert effective == answer.usage.prompt_tokens
    assert said == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "introspect", "gen_ai.request.model": "embedded",
        "gen_ai.request.max_tokens": 3, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 1.0, "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer.id, "gen_ai.response.model": "embedded", "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens, "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "introspect.kv_budget.policy": "full",
    }  # fmt: skip


def test_its_signals_are_evaluation_events_of_the_span(traced, make):
    client, spans, events = traced
    answer = ask(client, make, max_tokens=8, extra_body={"introspection": True})
    signals = answer.model_extra["introspection"]
    (span,) = answers(spans)
    records = [data.log_record for data in events.get_finished_logs()]
    assert {(r.event_name, r.trace_id, r.span_id) for r in records} == {
        ("gen_ai.evaluation.result", span.context.trace_id, span.context.span_id)
    }
    assert all(r.attributes["gen_ai.response.id"] == answer.id for r in records)
    said = {r.attributes["gen_ai.evaluation.name"]: r.attributes for r in records}
    for name in ("confidence", "hallucination_risk"):
        assert said[f"introspect.{name}"]["gen_ai.evaluation.score.value"] == pytest.approx(signals[name], abs=1e-6)
    assert said["introspect.strategy"]["gen_ai.evaluation.score.label"] == signals["strategy"]["label"]
    assert all("probe set embedded" in r.attributes["gen_ai.evaluation.explanation"] for r in records)


def test_streamed_answers_have_spans_too_and_nothing_holds_what_was_said(traced, make):
    client, spans, events = traced
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, make, stream=True, max_tokens=8))
    (span,) = answers(spans)
    assert text
    held = span.to_json() + "".join(
        data.log_record.to_json() if hasattr(data.log_record, "to_json") else str(data) for data in events.get_finished_logs()
    )
    assert "row 2 column" not in held
    assert "base64" not in held
    assert not [value for value in span.attributes.values() if value == text]


def test_an_answer_that_is_not_completed_is_an_error(traced, make):
    client, spans, events = traced
    stream = client.chat.completions.create(model="embedded", messages=make.messages("describe everything"), stream=True)
    next(stream)
    stream.close()
    for _ in range(500):
        if answers(spans):
            break
        time.sleep(0.02)
    (span,) = answers(spans)
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "cancelled")
    assert not events.get_finished_logs()


def test_off_there_is_none_of_it():
    settings = Settings(redis="off")
    assert make_telemetry(settings) is None
    assert type(make_runner(settings, SimpleNamespace(engine=None), None)) is Runner


def test_asked_for_and_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "introspect_service.telemetry", None)
    with pytest.raises(ServiceError, match=r"introspect-mllm\[otel\]"):
        create_app(Settings(redis="off", otel=True))
