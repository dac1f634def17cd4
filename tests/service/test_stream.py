"""What a consumer in another process sees: every answer, while it is made, with the signals of the response."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest
from redis import Redis

from introspect_service.events import DATA_MODELS, STREAM_KEY, CompletedData, SignalEvent, StartedData, StepData
from introspect_service.reader import read

READER = """
import json, sys, time
from introspect_service.reader import read
print("ready", flush=True)
for event in read(sys.argv[1], start=sys.argv[2], idle_seconds=60):
    print(json.dumps({"at": time.monotonic(), "type": event.type, "sequence": event.sequence, "subject": event.subject,
                      "tokens": len(getattr(event.data, "tokens", ()))}), flush=True)
    if event.type in ("introspect.completed.v1", "introspect.failed.v1"):
        break
"""


@pytest.fixture
def stream_url(valkey_server):
    return valkey_server.connection_url


@pytest.fixture
def last_id(stream_url):
    """Where the stream stands now."""
    with Redis.from_url(stream_url, decode_responses=True) as client:
        newest = client.xrevrange(STREAM_KEY, count=1)
    return newest[0][0] if newest else "0"


def events_after(url, last_id, subject=None):
    """Events behind an entry, up to the end of the first answer."""
    found = []
    for event in read(url, start=last_id, idle_seconds=10):
        if subject in (None, event.subject):
            found.append(event)
            if event.type in ("introspect.completed.v1", "introspect.failed.v1"):
                break
    return found


def test_an_answer_s_events_agree_with_its_response(client, settings, stream_url, last_id, make):
    answer = client.chat.completions.create(
        model=settings.model, messages=make.messages(), max_tokens=40, logprobs=True, extra_body={"introspection": True}
    )
    first, *steps, last = events_after(stream_url, last_id)
    assert isinstance(first.data, StartedData)
    assert all(isinstance(step.data, StepData) for step in steps)
    assert isinstance(last.data, CompletedData)
    assert {event.subject for event in (first, *steps, last)} == {answer.id}
    assert [event.sequence for event in (first, *steps, last)] == list(range(len(steps) + 2))
    assert [event.id for event in (first, last)] == [f"{answer.id}/0", f"{answer.id}/{len(steps) + 1}"]
    assert first.source == "/introspect/test"
    assert all(1 <= len(step.data.tokens) <= 16 for step in steps)
    streamed = [token for step in steps for token in step.data.tokens]
    responded = answer.choices[0].logprobs.content
    assert [token.index for token in streamed] == list(range(40))
    assert [token.text for token in streamed] == [entry.token if not entry.token.startswith("bytes:") else "" for entry in responded]
    assert [token.logprob for token in streamed] == [entry.logprob for entry in responded]
    assert [token.introspection.model_dump() for token in streamed] == [entry.model_extra["introspection"] for entry in responded]
    assert first.data.prompt_tokens == last.data.prompt_tokens == answer.usage.prompt_tokens
    assert last.data.completion_tokens == answer.usage.completion_tokens
    assert last.data.text == answer.choices[0].message.content
    assert last.data.seconds > 0
    told = {**answer.model_extra["introspection"]}
    assert told.pop("published") is True
    assert last.data.introspection.model_dump() == told


def test_another_process_reads_while_the_answer_is_made(client, settings, stream_url, last_id, make):
    with subprocess.Popen([sys.executable, "-c", READER, stream_url, last_id], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "ready\n"
        tokens = client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=80, stream=True)
        next(iter(tokens))
        heard = [json.loads(reader.stdout.readline())]  # it has heard of the answer before its end
        received = 1 + len(list(tokens))
        heard += [json.loads(line) for line in reader.stdout]
    assert received == 80 + 2
    assert heard[0]["type"] == "introspect.started.v1"
    assert heard[-1]["type"] == "introspect.completed.v1"
    assert sum(event["tokens"] for event in heard) == 80
    assert len(heard) >= 2 + 80 // 16
    assert heard[0]["at"] < heard[1]["at"] < heard[-1]["at"]


def test_entries_are_flat_cloudevents(client, settings, stream_url, last_id, make):
    client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=1)
    events_after(stream_url, last_id)
    with Redis.from_url(stream_url, decode_responses=True) as raw:
        entries = [fields for _, fields in raw.xrange(STREAM_KEY, min=f"({last_id}")]
    assert [fields["type"].split(".")[1] for fields in entries] == ["started", "step", "completed"]
    for fields in entries:
        assert set(fields) == {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "sequence", "data"}
        assert fields["specversion"] == "1.0"
        assert fields["datacontenttype"] == "application/json"
        assert fields["time"].endswith("Z")
        assert fields["id"] == f"{fields['subject']}/{fields['sequence']}"
        # What is written is what the model reads, no field more or less.
        written = json.loads(fields["data"])
        assert json.loads(DATA_MODELS[fields["type"]].model_validate(written).model_dump_json()) == written


def test_an_answer_whose_client_leaves_is_ended_and_said_to_have_failed(url, settings, stream_url, last_id, make):
    body = {"model": settings.model, "messages": make.messages(), "max_tokens": 800, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        for _ in zip(range(4), response.iter_lines(), strict=False):
            pass
    *_, last = events_after(stream_url, last_id)
    assert last.type == "introspect.failed.v1"
    assert last.data.reason == "cancelled"
    # The engine is free again at once, not after 800 tokens.
    assert httpx.get(f"{url}/readyz").json()["queue"]["waiting"] == 0


def test_a_request_that_the_model_cannot_take_is_said_to_have_failed(url, settings, stream_url, last_id):
    body = {"model": settings.model, "messages": [{"role": "assistant", "content": "hello"}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 400
    (failed,) = events_after(stream_url, last_id)
    assert (failed.type, failed.sequence, failed.data.reason) == ("introspect.failed.v1", 0, "invalid_request")


def test_a_reader_that_starts_now_hears_nothing_old(stream_url, client, settings, make):
    client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=1)
    assert list(read(stream_url, idle_seconds=0.2)) == []


def test_an_unknown_event_is_refused_in_words():
    with pytest.raises(ValueError, match=r"introspect\.step\.v1.*'other'"):
        SignalEvent.from_fields({"type": "other"})
