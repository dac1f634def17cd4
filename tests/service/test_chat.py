"""The openai client against the running service: every way of asking gives the same answer and the same signals."""

from __future__ import annotations

import json
import math

import httpx
import openai
import pytest

from introspect_service.responses import ChatCompletionChunk

EXTRA = {"introspection": True}


@pytest.fixture(scope="module")
def model(settings):
    return settings.model


@pytest.fixture(scope="module")
def plain(client, model, make):
    return client.chat.completions.create(model=model, messages=make.messages(), logprobs=True, top_logprobs=3, extra_body=EXTRA)


@pytest.fixture(scope="module")
def chunks(client, model, make):
    stream = client.chat.completions.create(
        model=model, messages=make.messages(), logprobs=True, top_logprobs=3, stream=True,
        stream_options={"include_usage": True}, extra_body=EXTRA,
    )  # fmt: skip
    return list(stream)


def introspection_of(entry):
    return entry.model_extra["introspection"]


def test_the_answer_has_openai_s_shape(plain, model):
    assert plain.object == "chat.completion"
    assert plain.model == model
    assert plain.choices[0].message.role == "assistant"
    assert plain.choices[0].finish_reason in ("stop", "length")
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    assert plain.usage.completion_tokens == 24
    # 144 image tokens are among the prompt's.
    assert 150 < plain.usage.prompt_tokens < 180


def test_the_answer_s_introspection_says_what_is_known_and_invents_nothing(plain, backend):
    signals = plain.model_extra["introspection"]
    assert signals["id"] == plain.id
    assert signals["calibrated"] is False
    assert signals["published"] is True
    assert signals["feature_schema"] == backend.feature_schema
    tokens = plain.usage.prompt_tokens
    assert signals["effective_budget"] == {"policy": "full", "nominal": tokens, "effective": tokens, "prompt_tokens": tokens}
    assert signals["scores"]
    assert all(math.isfinite(value) for value in signals["scores"].values())
    # Without probes there is nothing to say of these.
    assert not {"confidence", "hallucination_risk", "strategy", "probe_set", "spans"} & set(signals)


def test_token_texts_and_bytes_are_the_answer(plain):
    content = plain.choices[0].logprobs.content
    text = plain.choices[0].message.content
    assert len(content) == 24
    assert "".join(entry.token for entry in content if not entry.token.startswith("bytes:")) == text
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == text


def test_every_token_s_signal_is_final(plain):
    assert [introspection_of(entry)["final"] for entry in plain.choices[0].logprobs.content] == [True] * 24


def test_candidates_hold_the_chosen_token_first_when_decoding_greedily(plain):
    for entry in plain.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob >= entry.top_logprobs[2].logprob


def test_the_stream_gives_the_same_answer_and_signals(plain, chunks):
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == plain.choices[0].message.content
    streamed = [
        entry.model_dump() for chunk in chunks if chunk.choices and chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == [entry.model_dump() for entry in plain.choices[0].logprobs.content]
    whole, finish = plain.model_extra["introspection"], chunks[-2].model_extra["introspection"]
    assert {**finish, "id": None} == {**whole, "id": None}


def test_the_answer_s_introspection_rides_on_the_finish_chunk_and_nowhere_else(chunks):
    carriers = [number for number, chunk in enumerate(chunks) if "introspection" in (chunk.model_extra or {})]
    finished = [number for number, chunk in enumerate(chunks) if chunk.choices and chunk.choices[0].finish_reason]
    assert carriers == finished == [len(chunks) - 2]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert not any(chunk.choices[0].delta.model_extra for chunk in chunks if chunk.choices)


def test_the_stream_helper_keeps_the_tokens_and_the_signals_up_to_a_stop_string(client, model, plain, make):
    # The helper concatenates logprobs.content and keeps what is in its entries (field-notes/serving.md, 1.3).
    # It refuses answers that were cut off, so this one ends on a word of the plain answer.
    tokens = [entry.token for entry in plain.choices[0].logprobs.content]
    end = next(place for place in range(8, 24) if len(tokens[place].strip()) > 2 and tokens[place] not in "".join(tokens[:place]))
    with client.chat.completions.stream(model=model, messages=make.messages(), logprobs=True, stop=tokens[end], extra_body=EXTRA) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == "".join(tokens[:end])
    entries = final.choices[0].logprobs.content
    assert [entry.token for entry in entries] == [*tokens[:end], ""]
    assert all(introspection_of(entry)["final"] for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_that_spans_tokens_leaves_nothing_of_itself(client, model, plain, make, stream):
    text = plain.choices[0].message.content
    stop = text[7:12]
    assert " " in stop.strip()
    assert text.index(stop) == 7
    answer = client.chat.completions.create(model=model, messages=make.messages(), stop=stop, stream=stream)
    got = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else answer.choices[0].message.content
    assert got == text[:7]


@pytest.mark.anyio
async def test_the_asynchronous_client_streams(url, model, plain, make):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model=model, messages=make.messages(), stream=True, extra_body=EXTRA)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)
    assert chunks[-1].model_extra["introspection"]["calibrated"] is False


def test_without_introspection_the_response_is_openai_s_alone(client, model, make):
    answer = client.chat.completions.create(model=model, messages=make.messages(), logprobs=True, max_tokens=3)
    assert not answer.model_extra
    assert not any(entry.model_extra for entry in answer.choices[0].logprobs.content)
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


def test_signals_can_be_chosen(client, model, make):
    body = {"introspection": {"signals": ["confidence"]}}
    answer = client.chat.completions.create(model=model, messages=make.messages(), max_tokens=3, extra_body=body)
    assert "scores" not in answer.model_extra["introspection"]


@pytest.mark.parametrize(("budget", "divisor"), [(32, None), ("25%", 4)])
def test_a_request_s_kv_budget_is_kept_and_reported(client, model, budget, divisor, make):
    body = {"introspection": {"kv_budget": budget, "policy": "random"}}
    answer = client.chat.completions.create(model=model, messages=make.messages(), max_tokens=3, extra_body=body)
    report = answer.model_extra["introspection"]["effective_budget"]
    assert report["policy"] == "random"
    assert report["nominal"] == (answer.usage.prompt_tokens // divisor if divisor else budget)
    assert report["effective"] == report["nominal"]
    assert report["prompt_tokens"] == answer.usage.prompt_tokens


def test_a_passage_marked_as_context_reaches_the_model_as_context(client, model, make):
    marked = make.messages()
    marked[0]["content"].insert(1, {"type": "text", "text": "the pet of bobo is a dog .", "segment": "context"})
    answer = client.chat.completions.create(model=model, messages=marked, max_tokens=2)
    without = client.chat.completions.create(model=model, messages=make.messages(), max_tokens=2)
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens + 5


def test_sampling_follows_the_seed(client, model, make):
    def sample(seed):
        answer = client.chat.completions.create(model=model, messages=make.messages(), temperature=1.0, top_p=0.9, seed=seed, max_tokens=12)
        return answer.choices[0].message.content

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_sse_is_plain_data_lines_and_ends_with_done(url, model, make):
    body = {"model": model, "messages": make.messages(), "stream": True, "max_tokens": 2, "introspection": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        lines = [line for line in response.read().decode().split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    parsed = [json.loads(line[6:]) for line in lines[:-1]]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("error" in chunk for chunk in parsed)


def test_pictures_of_every_kind_and_several_of_them_are_taken(client, model, make):
    parts = [
        {"type": "image_url", "image_url": {"url": make.data_uri(make.encoded(make.picture(), form), kind)}}
        for form, kind in (("JPEG", "jpeg"), ("WEBP", "webp"))
    ]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": "how many red ?"}]}]
    answer = client.chat.completions.create(model=model, messages=chat, max_tokens=2)
    assert answer.usage.prompt_tokens > 2 * 144


def test_the_model_is_listed(client, model, backend):
    (card,) = client.models.list().data
    assert card.id == model
    assert card.model_extra["introspection"]["fingerprint"] == backend.model.fingerprint
    assert client.models.retrieve(model).id == model


def test_health_tells_of_the_model_the_queue_and_the_stream(url, model):
    assert httpx.get(f"{url}/livez").json() == {"status": "ok"}
    for route in ("/readyz", "/health", "/health/ready"):
        ready = httpx.get(url + route)
        assert ready.status_code == 200
        assert ready.json()["model"] == model
        assert ready.json()["queue"] == {"waiting": 0, "depth": 2}
        assert ready.json()["stream"]["connected"] is True
    assert httpx.get(url).headers["content-type"].startswith("text/html"), "the page, for people"


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("a b", False), ("x" * 65, False)])
def test_a_plain_request_id_is_given_back(url, sent, kept):
    got = httpx.get(f"{url}/livez", headers={"X-Request-Id": sent}).headers["x-request-id"]
    assert (got == sent) is kept
    assert got


@pytest.mark.parametrize("asked", [{}, {"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "introspection": True}])
def test_every_chunk_is_what_its_model_says(url, model, make, asked):
    body = {"model": model, "messages": make.messages(), "stream": True, "max_tokens": 3, **asked}
    text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).text
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line][:-1]
    assert len(lines) > 2
    for line in lines:
        assert line.isascii()
        assert json.loads(line) == ChatCompletionChunk.model_validate_json(line).model_dump(mode="json")
