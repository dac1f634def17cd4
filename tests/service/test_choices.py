"""Several choices of one request: each is an answer of its own, made beside the others."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import httpx
import pytest
from redis import Redis
from safetensors.numpy import load

from introspect_service.choices import choice_seed
from introspect_service.events import STREAM_KEY, SignalEvent
from introspect_service.settings import Settings

SAMPLED = {"temperature": 1.0, "max_tokens": 12, "logprobs": True, "extra_body": {"introspection": True}}


@pytest.fixture(scope="module")
def ask(client, settings, make):
    return lambda **options: client.chat.completions.create(model=settings.model, messages=make.messages(), **SAMPLED, **options)


@pytest.fixture(scope="module")
def plain(ask):
    return ask(n=3, seed=7)


@pytest.fixture(scope="module")
def chunks(ask):
    return list(ask(n=3, seed=7, stream=True, stream_options={"include_usage": True}))


def texts(completion):
    return [choice.message.content for choice in completion.choices]


def assert_same(entries, others):
    """The same tokens, and what a batch of another size leaves of their numbers."""
    assert [entry.token for entry in entries] == [entry.token for entry in others]
    assert [entry.logprob for entry in entries] == pytest.approx([entry.logprob for entry in others], abs=1e-4)


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_seeds_are_the_request_s_own_and_such_as_are_derived_from_it():
    # The rule is documented: whoever has the seed can make any choice again.
    assert [choice_seed(7, index) for index in range(3)] == [7, 7631765994772377903, 992399040556432219]
    assert choice_seed(-5, 0) == -5
    assert choice_seed(None, 1) is None
    assert all(0 <= choice_seed(2**63 - 1, index) < 2**63 for index in range(1, 50))


def test_each_choice_is_what_its_seed_gives_alone(ask, plain):
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    alone = [ask(seed=choice_seed(7, index)) for index in range(3)]
    assert texts(plain) == [answer.choices[0].message.content for answer in alone]
    assert len(set(texts(plain))) == 3
    for choice, answer in zip(plain.choices, alone, strict=True):
        assert_same(choice.logprobs.content, answer.choices[0].logprobs.content)
        assert choice.finish_reason == answer.choices[0].finish_reason
    assert plain.usage.prompt_tokens == alone[0].usage.prompt_tokens, "one prompt, however many choices"
    assert plain.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in alone)


def test_signals_are_those_of_choice_0_and_beside_them_those_of_every_choice(plain):
    said = plain.model_extra["introspection"]
    choices = said["choices"]
    assert [each["index"] for each in choices] == [0, 1, 2]
    assert [each["id"] for each in choices] == [plain.id, f"{plain.id}-1", f"{plain.id}-2"]
    first = {name: value for name, value in choices[0].items() if name != "index"}
    assert first == {name: value for name, value in said.items() if name != "choices"}
    assert len({each["scores"]["mean_logprob"] for each in choices}) == 3
    assert all(each["published"] for each in choices)


def test_a_single_choice_has_no_list_of_choices(ask):
    assert "choices" not in ask(n=1, seed=7).model_extra["introspection"]


def test_the_stream_interleaves_the_choices_and_gives_the_same(plain, chunks):
    said = [[], [], []]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        said[choice.index].append(choice)
    assert ["".join(choice.delta.content or "" for choice in each) for each in said] == texts(plain)
    for each, choice in zip(said, plain.choices, strict=True):
        assert each[0].delta.role == "assistant"
        assert [one.finish_reason for one in each if one.finish_reason] == [choice.finish_reason]
        assert_same([entry for one in each if one.logprobs for entry in one.logprobs.content], choice.logprobs.content)
    order = [chunk.choices[0].index for chunk in chunks[3:-1]]
    assert order != sorted(order), "they are decoded together, not one after the other"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


def test_in_a_stream_the_signals_ride_on_the_last_finish_chunk(plain, chunks):
    carriers = [number for number, chunk in enumerate(chunks) if "introspection" in (chunk.model_extra or {})]
    finished = [number for number, chunk in enumerate(chunks) if chunk.choices and chunk.choices[0].finish_reason]
    assert len(finished) == 3
    assert carriers == [finished[-1]]
    said = chunks[carriers[0]].model_extra["introspection"]
    for each, same in zip(said["choices"], plain.model_extra["introspection"]["choices"], strict=True):
        assert each["scores"] == pytest.approx(same["scores"], rel=1e-3, abs=1e-3)


def test_the_stream_helper_keeps_the_choices_apart(client, settings, make, plain):
    # It refuses answers that were cut off, so some letters from the middle of each end it.
    stops = [text[len(text) // 2 :][:4] for text in texts(plain)]
    assert all(len(stop) == 4 for stop in stops)
    with client.chat.completions.stream(
        model=settings.model, messages=make.messages(), n=3, seed=7, temperature=1.0, max_tokens=12, stop=stops
    ) as stream:
        final = stream.until_done().get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    assert texts(final) == [min((text.partition(stop)[0] for stop in stops), key=len) for text in texts(plain)]


def test_each_choice_s_statistics_can_be_asked_for_under_its_id(url, plain):
    for choice, said in zip(plain.choices, plain.model_extra["introspection"]["choices"], strict=True):
        told = httpx.get(f"{url}/v1/introspection/{said['id']}/answer").json()
        assert told["text"] == choice.message.content
        assert [token["logprob"] for token in told["tokens"]] == [entry.logprob for entry in choice.logprobs.content]
        arrays = load(httpx.get(f"{url}/v1/introspection/{said['id']}").content)
        assert len(arrays["heads.mass"]) >= len(arrays["tokens.id"]) >= len(told["tokens"]), "control tokens are not told"
        assert arrays["tokens.logprob"][0] == pytest.approx(choice.logprobs.content[0].logprob, abs=1e-5)
    assert httpx.post(f"{url}/v1/introspection/{plain.id}-2/feedback", json={"label": "wrong"}).json()["id"] == f"{plain.id}-2"


def test_each_choice_has_its_events(plain, valkey_server):
    with Redis.from_url(valkey_server.connection_url, decode_responses=True) as redis:
        events = [SignalEvent.from_fields(fields) for _, fields in redis.xrange(STREAM_KEY)]
    for choice, said in zip(plain.choices, plain.model_extra["introspection"]["choices"], strict=True):
        own = [event for event in events if event.subject == said["id"] and event.type != "introspect.feedback.v1"]
        assert [event.sequence for event in own] == list(range(len(own)))
        assert own[0].type == "introspect.started.v1"
        assert own[-1].data.text == choice.message.content


@pytest.fixture
def narrow(backend, make):
    """A service with two places: one to be answered, one to wait."""
    settings = Settings(model=backend.model.name, redis="off", port=make.free_port(), queue_depth=1, max_batch=1, max_tokens=800)
    with make.running(settings, backend) as (address, app):
        yield f"{address}/v1/chat/completions", app.state.service.runner


def body_of(backend, **options):
    return {"model": backend.model.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, **options}


def test_all_choices_are_taken_or_none(narrow, backend):
    address, runner = narrow
    refused = httpx.post(address, json=body_of(backend, n=3))
    assert refused.status_code == 400
    assert "at most 2" in refused.json()["error"]["message"]
    with httpx.stream("POST", address, json=body_of(backend, stream=True, max_tokens=700), timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        refused = httpx.post(address, json=body_of(backend, n=2), timeout=30)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert (runner.running, runner.waiting) == (1, 0), "no choice was left behind"
    wait_for(lambda: runner.running == 0)
    # There are places for both now, though only one is answered at a time.
    answer = httpx.post(address, json=body_of(backend, n=2), timeout=30).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 4


def test_a_client_that_leaves_ends_all_choices(narrow, backend):
    address, runner = narrow
    with httpx.stream("POST", address, json=body_of(backend, n=2, stream=True, max_tokens=800), timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert runner.running + runner.waiting == 2
    wait_for(lambda: runner.running + runner.waiting == 0)
    wait_for(lambda: backend.engine.kv_bytes.allocated == 0)


class FailsLate:
    """A real engine that breaks in the middle of every second choice."""

    def __init__(self, engine):
        self.engine = engine

    def follow(self, request, sink):
        def break_at_the_fourth(event):
            broken = request.id.endswith("-1") and getattr(event, "index", None) == 3
            sink(RuntimeError("secret") if broken else event)

        return self.engine.follow(request, break_at_the_fourth)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_fails_ends_the_answer_and_the_other_choices(backend, make, stream):
    settings = Settings(model=backend.model.name, redis="off", port=make.free_port(), max_tokens=800)
    with make.running(settings, replace(backend, engine=FailsLate(backend.engine))) as (address, app):
        response = httpx.post(f"{address}/v1/chat/completions", json=body_of(backend, n=2, stream=stream, max_tokens=700), timeout=60)
        runner = app.state.service.runner
        wait_for(lambda: runner.running + runner.waiting == 0)
    assert "secret" not in response.text
    if not stream:
        assert response.status_code == 500
        return
    *_, last, done = [line for line in response.text.split("\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert done == "data: [DONE]"
