"""What the openai client relies on beyond answers: typed errors, request ids, helpers, and fields by either of their names."""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel, SecretStr

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def ask(client, settings, make):
    """Asks with a few tokens, and options."""

    def send(**options):
        given = {"model": settings.model, "messages": make.messages(), "max_tokens": 3, **options}
        return client.chat.completions.create(**given)

    return send


@pytest.mark.parametrize(
    ("wrong", "kind", "param", "code"),
    [
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens", "limit_exceeded"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model", "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, openai.BadRequestError, "tools", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format", "invalid_value"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias", "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_of_the_client_s_own_types_and_name_the_field(ask, wrong, kind, param, code, stream):
    with pytest.raises(kind) as refused:
        ask(**wrong, stream=stream)
    error = refused.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.body["message"] in error.message


def test_a_large_body_a_missing_key_and_too_many_requests_are_typed_too(ask, settings, backend, make):
    with pytest.raises(openai.APIStatusError) as refused:
        ask(messages=[{"role": "user", "content": "x" * (settings.max_body_bytes + 1)}])
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
    own = settings.model_copy(update={"port": make.free_port(), "redis": "off", "api_keys": SecretStr(KEY), "rate_limit": 1})
    with make.running(own, backend) as (url, _):
        given = {"model": settings.model, "messages": make.messages(), "max_tokens": 1}
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**given)
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            assert client.chat.completions.create(**given).choices[0].finish_reason == "length"
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(**given)
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_answers_carry_the_request_s_id(ask, client, settings, make):
    assert ask(extra_headers={"X-Request-Id": "mine-1"})._request_id == "mine-1"
    raw = client.chat.completions.with_raw_response.create(model=settings.model, messages=make.messages(), max_tokens=1)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    with client.chat.completions.with_streaming_response.create(
        model=settings.model, messages=make.messages(), max_tokens=2, stream=True
    ) as response:
        assert response.headers["x-request-id"]
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"max_tokens": 2}, 2),
        ({"max_tokens": None, "max_completion_tokens": 4}, 4),
        ({"max_tokens": 2, "max_completion_tokens": 4}, 4),  # the newer name stands over the older one
        ({"max_tokens": None}, 24),
    ],
)
def test_the_longest_answer_by_either_name(ask, given, tokens):
    assert ask(**given).usage.completion_tokens == tokens


def test_usage_comes_in_a_stream_only_where_it_is_asked_for(ask):
    without = list(ask(stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)
    *chunks, last = ask(stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage == ask().usage


def test_any_of_several_stop_strings_ends_the_answer(ask):
    words = ask(max_tokens=12).choices[0].message.content.split()
    cut = ask(max_tokens=12, stop=["never said", words[6], words[9]]).choices[0]
    assert (cut.message.content.split(), cut.finish_reason) == (words[:6], "stop")


@pytest.mark.parametrize("top", [0, 1, 20])
def test_as_many_candidates_as_are_asked_for(ask, top):
    content = ask(logprobs=True, top_logprobs=top).choices[0].logprobs.content
    assert [len(entry.top_logprobs) for entry in content] == [top] * 3
    assert all(entry.logprob <= 0 for entry in content)


def test_the_same_seed_says_the_same_in_a_stream_and_out_of_it(ask):
    given = {"seed": 11, "temperature": 1.2, "max_tokens": 10}
    whole = ask(**given).choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(**given, stream=True)) == whole
    assert ask(**given | {"seed": 12}).choices[0].message.content != whole


def test_the_stream_helper_tells_events_in_order(client, settings, make, ask):
    stop = ask(max_tokens=12).choices[0].message.content.split()[4]
    with client.chat.completions.stream(model=settings.model, messages=make.messages(), logprobs=True, stop=stop) as stream:
        events = list(stream)
    kinds = [event.type for event in events if event.type != "chunk"]
    assert set(kinds) == {"content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"}
    (done,) = [event for event in events if event.type == "content.done"]
    assert done.content == "".join(event.delta for event in events if event.type == "content.delta")


def test_structured_output_is_refused_and_not_passed_over(client, settings, make):
    class Digit(BaseModel):
        digit: int

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.parse(model=settings.model, messages=make.messages(), response_format=Digit)
    assert refused.value.param == "response_format"


@pytest.mark.anyio
async def test_the_asynchronous_client_asks_streams_and_gets_typed_errors(url, settings, make, ask):
    given = {"model": settings.model, "messages": make.messages(), "max_tokens": 3}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(**given, n=2, extra_body={"introspection": True})
        assert [choice.message.content for choice in answer.choices] == [ask().choices[0].message.content] * 2, "at temperature 0"
        assert len(answer.model_extra["introspection"]["choices"]) == 2
        async with client.chat.completions.stream(**given | {"stop": answer.choices[0].message.content.split()[1]}) as stream:
            kinds = {event.type async for event in stream}
            assert (await stream.get_final_completion()).choices[0].finish_reason == "stop"
        assert "content.done" in kinds
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**given | {"model": "other"})
        assert [model.id async for model in client.models.list()] == [settings.model]
