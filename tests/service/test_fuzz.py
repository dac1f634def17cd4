"""Every route of the OpenAPI document, called with what its schema allows and with what it does not: never a 500, always as described.

Schemathesis makes the requests from the document itself. Answers are judged by status, media type and schema.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]

ENDLESS = {"/v1/signals"}
"""Goes on for ever; its parameters are tested by name."""


@pytest.fixture(scope="module")
def operations(service):
    """Operations by method and path."""
    document = schemathesis.openapi.from_url(f"{service[0]}/openapi.json")
    made = [result.ok() for result in document.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in made if operation.path not in ENDLESS}


@pytest.fixture(scope="module")
def operator(settings):
    """The operator's key, so that what is behind it is reached."""
    return {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}


def test_every_documented_route_is_fuzzed(operations):
    assert {
        "POST /v1/chat/completions", "GET /v1/models", "GET /v1/models/{model}", "GET /v1/introspection/{completion_id}",
        "GET /v1/introspection/{completion_id}/answer", "GET /v1/introspection/{completion_id}/heads",
        "GET /v1/introspection/{completion_id}/events", "POST /v1/introspection/{completion_id}/feedback", "GET /metrics", "GET /livez",
        "GET /readyz", "GET /v1/probes", "GET /v1/probes/drift", "POST /v1/probes", "POST /v1/probes/active",
    } == set(operations)  # fmt: skip


def faults_of(operation, mode, headers):
    """What is wrong with the answers to requests of this operation, each kind once."""
    faults = set()

    @settings(max_examples=6, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        response = case.call(timeout=30, headers=headers)
        try:
            case.validate_response(response, checks=CHECKS)
        except BaseExceptionGroup as found:
            faults.update(f"{operation.label}: {fault}: {response.status_code} {response.text[:300]}" for fault in found.exceptions)
        except AssertionError as fault:
            faults.add(f"{operation.label}: {fault}: {response.status_code} {response.text[:300]}")

    check()
    return faults


def test_no_request_that_the_schema_allows_breaks_a_route_or_gets_an_answer_that_is_not_described(operations, operator):
    assert [fault for operation in operations.values() for fault in sorted(faults_of(operation, GenerationMode.POSITIVE, operator))] == []


def test_nor_does_one_that_the_schema_forbids(operations, operator):
    with_body = [operation for operation in operations.values() if operation.body]
    assert len(with_body) == 4
    assert [fault for operation in with_body for fault in sorted(faults_of(operation, GenerationMode.NEGATIVE, operator))] == []
