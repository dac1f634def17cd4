"""Spans and evaluation events leave the process over OTLP, as a receiver reads them with OpenTelemetry's own protocol buffers.

No collector's program was at hand: what receives here is an HTTP server and the messages that every collector parses.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]


class Receiver(BaseHTTPRequestHandler):
    """Takes what is exported, and answers as OTLP wants it."""

    def do_POST(self):
        """One export: protocol buffers, perhaps compressed."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.taken.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def receiver():
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.taken = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def plain(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def test_a_service_exports_its_answers_before_it_stops(receiver, make):
    port = make.free_port()
    variables = {
        "INTROSPECT_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
        "OTEL_SERVICE_NAME": "under-test", "OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BLRP_SCHEDULE_DELAY": "60000",
    }  # fmt: skip
    arguments = [*COMMAND, "serve", "--port", str(port), "--redis", "off"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
        assert "service" in process.stdout.readline()
        body = {"model": "embedded", "messages": make.messages(), "max_tokens": 4}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).json()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert {kind for _, kind, _ in receiver.taken} == {"application/x-protobuf"}
    traces = [ExportTraceServiceRequest.FromString(sent) for path, _, sent in receiver.taken if path == "/v1/traces"]
    resources = [each for trace in traces for each in trace.resource_spans]
    assert {plain(each.resource.attributes)["service.name"] for each in resources} == {"under-test"}
    spans = [span for each in resources for scope in each.scope_spans if scope.scope.name == "introspect_service" for span in scope.spans]
    (span,) = spans
    assert span.name == "chat embedded"
    assert plain(span.attributes)["gen_ai.response.id"] == answer["id"]
    assert plain(span.attributes)["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    logs = [ExportLogsServiceRequest.FromString(sent) for path, _, sent in receiver.taken if path == "/v1/logs"]
    events = [record for log in logs for each in log.resource_logs for scope in each.scope_logs for record in scope.log_records]
    assert events
    assert {(event.event_name, event.trace_id, event.span_id) for event in events} == {
        ("gen_ai.evaluation.result", span.trace_id, span.span_id)
    }
    assert "introspect.confidence" in {plain(event.attributes)["gen_ai.evaluation.name"] for event in events}
