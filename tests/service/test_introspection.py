"""Head statistics of recent answers: the same numbers in every form, within bounds, live and after."""

from __future__ import annotations

import json
import threading

import httpx
import numpy as np
import openai
import pytest
import torch
from safetensors.numpy import load

from introspect_kernels import Segment
from introspect_service.compact import HEAD_FIELDS, STATISTICS


@pytest.fixture
def get(url):
    return lambda path, **options: httpx.get(f"{url}/v1/introspection/{path}", timeout=60, **options)


@pytest.fixture(scope="module")
def answer(client, settings, make):
    return client.chat.completions.create(
        model=settings.model, messages=make.messages(), max_tokens=6, logprobs=True, top_logprobs=2, extra_body={"introspection": True}
    )


@pytest.fixture(scope="module")
def rows(backend, settings, make):
    """The head rows of the same answer, straight from the engine."""
    from introspect_service.conversation import to_engine_request
    from introspect_service.schemas import ChatRequest

    chat = ChatRequest.model_validate({"model": settings.model, "messages": make.messages(), "max_tokens": 6})
    torch.manual_seed(0)
    return [step.heads for step in backend.engine.generate([to_engine_request(chat, "direct", settings)]) if step.heads is not None]


def test_the_file_holds_the_engine_s_numbers(get, answer, rows):
    response = get(answer.id)
    assert response.headers["content-type"] == "application/octet-stream"
    arrays = load(response.content)
    assert len(arrays["tokens.id"]) == 6
    for name in HEAD_FIELDS:
        expected = np.stack([getattr(row, name) for row in rows])
        stored = arrays[f"heads.{name}"]
        assert stored.shape == expected.shape
        if stored.dtype == np.int32:
            assert (stored == expected).all()
        else:
            np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=2e-3, atol=1e-5, err_msg=name)


def test_the_file_s_header_is_plain_json_with_the_answer_in_it(get, answer):
    content = get(answer.id).content
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "introspect-answer/1"
    told = json.loads(metadata["answer"])
    assert told == get(f"{answer.id}/answer").json()
    assert told["text"] == answer.choices[0].message.content


def test_the_json_form_tells_the_response_s_tokens_and_signals(get, answer):
    told = get(f"{answer.id}/answer").json()
    entries = answer.choices[0].logprobs.content
    assert [token["token"] for token in told["tokens"]] == [entry.token for entry in entries]
    assert [token["logprob"] for token in told["tokens"]] == [entry.logprob for entry in entries]
    assert [token["introspection"] for token in told["tokens"]] == [entry.model_extra["introspection"] for entry in entries]
    assert all(len(token["top_logprobs"]) == 5 for token in told["tokens"])
    said = dict(answer.model_extra["introspection"])
    said.pop("published")
    assert told["introspection"] == said
    assert told["state"] == "completed"
    assert told["statistics"] == list(STATISTICS)


def test_what_the_budget_kept_is_told_by_segment(get, client, settings, make):
    asked = {"kv_budget": "25%", "policy": "snapkv"}
    short = client.chat.completions.create(
        model=settings.model, messages=make.messages(), max_tokens=2, extra_body={"introspection": asked}
    )
    told = get(f"{short.id}/answer").json()
    kept, grid = told["kept"], told["images"][0]
    assert kept["image"]["logical"] == grid["rows"] * grid["columns"]
    assert kept["image"]["retained"] < kept["image"]["logical"]
    # The first row has seen the last prompt token too, which comes on top of the budget.
    assert sum(part["retained"] for part in kept.values()) == pytest.approx(told["effective_budget"]["effective"], abs=1.01)


@pytest.mark.parametrize("row", ["producing", "reading"])
def test_one_statistic_of_all_heads(get, answer, rows, row):
    asked = {"token": 2, "statistic": "mass.image", "row": row}
    told = get(f"{answer.id}/heads", params=asked).json()
    expected = rows[2 + (row == "reading")]
    np.testing.assert_allclose(np.array(told["values"]), expected.mass[..., Segment.IMAGE], rtol=2e-3, atol=1e-5)
    assert told["image_mass"] == told["values"]


def test_where_heads_look_is_told_in_rows_and_columns_of_the_picture(get, answer, rows):
    told = get(f"{answer.id}/heads", params={"token": 1, "statistic": "image_argmax_position"}).json()
    columns = get(f"{answer.id}/answer").json()["images"][0]["columns"]
    with np.load(_arrays_of(get, answer)) as arrays:
        first = int(np.flatnonzero(arrays["segments"] == Segment.IMAGE)[0])
    for layer, head in np.ndindex(rows[1].image_argmax_position.shape):
        image, row, column = told["patches"][layer][head]
        assert image == 0
        assert first + row * columns + column == rows[1].image_argmax_position[layer, head] == told["values"][layer][head]


def _arrays_of(get, answer):
    import io

    buffer = io.BytesIO()
    np.savez(buffer, segments=load(get(answer.id).content)["prompt.segments"])
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("chatcmpl-none", 404, "completion_id"),
        ("chatcmpl-none/answer", 404, "completion_id"),
        ("chatcmpl-none/heads?token=0", 404, "completion_id"),
        ("chatcmpl-none/events", 404, "completion_id"),
        ("{id}/heads?token=99", 404, "token"),
        ("{id}/heads?token=5&row=reading", 200, None),
        ("{id}/heads?token=-1", 400, "query.token"),
        ("{id}/heads?token=0&statistic=mood", 400, "statistic"),
        ("{id}/events?statistics=mood", 400, "statistics"),
    ],
)
def test_what_is_not_there_is_said(get, answer, path, status, param):
    response = get(path.format(id=answer.id))
    assert response.status_code == status, response.text
    if param:
        assert response.json()["error"]["param"] == param


def events_of(response):
    """Server-Sent Events as (event, id, data)."""
    found, current = [], {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            current[name] = value
        elif current:
            found.append((current["event"], current.get("id"), json.loads(current["data"])))
            current = {}
    return found


def test_an_answer_can_be_followed_while_it_is_made(url, client, settings, make, get):
    followed = []

    def follow(completion_id):
        path = f"{url}/v1/introspection/{completion_id}/events?statistics=entropy,retained.image"
        with httpx.stream("GET", path, timeout=60) as response:
            followed.extend(events_of(response))

    chunks = client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=30, stream=True)
    first = next(iter(chunks))
    thread = threading.Thread(target=follow, args=(first.id,))
    thread.start()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    thread.join(60)
    *tokens, (kind, _, end) = followed
    assert kind == "completed"
    assert end["text"] == text
    assert [int(event_id) for _, event_id, _ in tokens] == list(range(30))
    assert "".join(data["token"] for _, _, data in tokens) == text
    told = get(f"{first.id}/heads", params={"token": 7, "statistic": "entropy"}).json()
    assert tokens[7][2]["statistics"]["entropy"] == told["values"]
    with httpx.stream("GET", f"{url}/v1/introspection/{first.id}/events", headers={"Last-Event-ID": "27"}) as response:
        assert [event_id for kind, event_id, _ in events_of(response) if kind == "token"] == ["28", "29"]


def test_the_oldest_answers_are_dropped_and_the_bounds_hold(settings, backend, make):
    small = settings.model_copy(update={"port": make.free_port(), "keep_answers": 3, "redis": "off"})
    with make.running(small, backend) as (url, app), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        ask = {"model": small.model, "messages": make.messages()}
        ids = [client.chat.completions.create(**ask, max_tokens=2).id for _ in range(5)]
        assert [httpx.get(f"{url}/v1/introspection/{each}").status_code for each in ids] == [404, 404, 200, 200, 200]
        assert "newest 3 answers" in httpx.get(f"{url}/v1/introspection/{ids[0]}").json()["error"]["message"]
        records = app.state.service.records
        assert len(records) == 3
        one = records.get(ids[-1]).bytes
        records.max_bytes = 2 * one
        client.chat.completions.create(**ask, max_tokens=2)
        assert len(records) == 2
        records.max_bytes = one // 2  # less than one answer: it is given up while it is made, and the answer is whole
        assert client.chat.completions.create(**ask, max_tokens=4).usage.completion_tokens == 4
        assert len(records) == 0
        assert records.bytes == 0


def test_no_more_streams_are_open_than_allowed(settings, backend, make):
    small = settings.model_copy(update={"port": make.free_port(), "max_viewers": 1})
    with make.running(small, backend) as (url, app):
        with httpx.stream("GET", f"{url}/v1/signals", timeout=30) as first:
            lines = first.iter_lines()  # held: once it is let go of, httpx ends the response
            assert next(lines) == ": open"
            refused = httpx.get(f"{url}/v1/signals")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert app.state.service.viewers.count == 1
        for _ in range(100):
            if app.state.service.viewers.count == 0:
                break
            threading.Event().wait(0.1)
        assert app.state.service.viewers.count == 0, "a viewer that left gives its place back"
