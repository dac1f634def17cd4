"""The committed AsyncAPI file is what the models say, is AsyncAPI, and describes what a real run publishes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from jsonschema import Draft202012Validator, FormatChecker
from redis import Redis

from introspect_service.asyncapi import asyncapi_document, asyncapi_text
from introspect_service.events import DATA_MODELS, STREAM_KEY

FILE = Path(__file__).parents[2] / "service" / "asyncapi.json"


def validator(document, part, kind):
    """Judges the headers or the payload of one type of message."""
    schema = {**document["components"]["messages"][kind][part], "components": document["components"]}
    return Draft202012Validator(schema, format_checker=FormatChecker())


def test_the_committed_file_is_generated_from_the_models():
    assert FILE.read_text(encoding="utf-8") == asyncapi_text(), "write it anew: introspect asyncapi > service/asyncapi.json"


def test_it_is_asyncapi_and_every_reference_leads_somewhere():
    document = asyncapi_document()
    ApplicationSchema.model_validate(document)
    references = []

    def walk(value):
        if isinstance(value, dict):
            references.extend([value["$ref"]] if "$ref" in value else [])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    for reference in references:
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
    assert len(references) > 20
    messages = document["components"]["messages"]
    assert {f"introspect.{name}.v1" for name in messages} == set(DATA_MODELS) == {message["name"] for message in messages.values()}
    assert [name for name, message in messages.items() if message["x-droppable"]] == ["step"]


@pytest.fixture(scope="module")
def run(make, valkey_server):
    """Entries of real answers of the embedded model with its own probes, under a threshold low enough to alert, and one failure."""
    from introspect_service.backend import load_backend
    from introspect_service.settings import Settings

    own = Settings(redis=valkey_server.connection_url, port=make.free_port(), replica="described", alert_risk=0.001)
    picture = (Path(__file__).parents[2] / "samples" / "scene-1.png").read_bytes()
    with make.running(own, load_backend(own)) as (url, _):
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for text in ("what digit is at row 2 column 3 ?", "<image>"):
            body = {"model": model, "messages": make.messages(text, make.data_uri(picture)), "max_tokens": 8}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            if answer.status_code == 200:
                label = {"label": "right", "spans": [{"start": 0, "end": 1, "label": "right"}]}
                httpx.post(f"{url}/v1/introspection/{answer.json()['id']}/feedback", json=label).raise_for_status()
    with Redis.from_url(valkey_server.connection_url, decode_responses=True) as client:
        return [fields for _, fields in client.xrange(STREAM_KEY) if fields["source"] == "/introspect/described"]


def test_a_real_run_has_every_type_of_event_and_each_is_as_described(run):
    document = json.loads(FILE.read_text(encoding="utf-8"))
    assert {fields["type"] for fields in run} == set(DATA_MODELS)
    for fields in run:
        kind, headers = fields["type"].split(".")[1], {name: value for name, value in fields.items() if name != "data"}
        validator(document, "headers", kind).validate(headers)
        validator(document, "payload", kind).validate(json.loads(fields["data"]))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("completed", {"text": None}),
        ("completed", {"finish_reason": "tired"}),
        ("step", {"tokens": [{"index": "one"}]}),
        ("alert", {"level": "page"}),
        ("started", {"effective_budget": {"policy": "full"}}),
        ("failed", {"reason": "unknown"}),
    ],
)
def test_the_schemas_refuse_what_is_wrong(run, kind, change):
    document = asyncapi_document()
    fields = next(fields for fields in run if fields["type"] == f"introspect.{kind}.v1")
    data = json.loads(fields["data"])
    judge = validator(document, "payload", kind)
    assert judge.is_valid(data)
    assert not judge.is_valid({**data, **change})
