"""Feedback is checked, published behind the answer's own events, and stored as labels that join with traces by id."""

from __future__ import annotations

import httpx
import numpy as np
import openai
import pyarrow.parquet as pq
import pytest

from introspect_probes.traces import read_traces
from introspect_service.errors import ServiceError
from introspect_service.events import FeedbackData
from introspect_service.labels import LabelStore
from introspect_service.reader import read


@pytest.fixture(scope="module")
def labelled(settings, backend, make, tmp_path_factory):
    """A service that stores labels: client, address, folder."""
    folder = tmp_path_factory.mktemp("labels") / "traces"
    own = settings.model_copy(update={"port": make.free_port(), "traces": str(folder)})
    with make.running(own, backend) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client, url, folder


@pytest.fixture
def answer(labelled, settings, make):
    budget = {"kv_budget": 40, "policy": "snapkv"}
    return labelled[0].chat.completions.create(
        model=settings.model, messages=make.messages(), max_tokens=5, extra_body={"introspection": budget}
    )


def send(url, completion_id, body):
    return httpx.post(f"{url}/v1/introspection/{completion_id}/feedback", json=body, timeout=60)


def test_a_label_and_its_answer_are_stored_for_training(labelled, answer):
    _, url, folder = labelled
    text = answer.choices[0].message.content
    said = {"label": "wrong", "spans": [{"start": 0, "end": 3, "label": "right"}, {"start": 4, "end": len(text), "label": "wrong"}]}
    taken = send(url, answer.id, said).json()
    assert taken == {"id": answer.id, "label": "wrong", "published": True, "stored": True}

    row = pq.read_table(folder / f"labels-{answer.id}.parquet").to_pylist()[0]
    assert (row["id"], row["completion_id"], row["correct"]) == (f"{answer.id}@snapkv-40", answer.id, 0)
    assert row["spans"] == [{"start": 0, "end": 3, "label": 0}, {"start": 4, "end": len(text), "label": 1}]

    trace = next(trace for trace in read_traces(folder) if trace.id == row["id"])
    assert trace.answer == text
    assert trace.question == "what digit is at row 2 column 3 ?"
    assert trace.correct == -1
    arrays = [step.heads.entropy for step in trace.steps[:5]]
    heads = httpx.get(f"{url}/v1/introspection/{answer.id}/heads?token=3&statistic=entropy").json()
    np.testing.assert_allclose(arrays[3], np.array(heads["values"]), atol=1e-6)
    assert trace.steps[-1].heads is not None, "the row that read the last token is kept"


def test_a_later_label_stands_over_an_earlier_one_and_the_answer_is_stored_once(labelled, answer):
    _, url, folder = labelled
    for label in ("wrong", "right"):
        assert send(url, answer.id, {"label": label}).status_code == 200
    assert pq.read_table(folder / f"labels-{answer.id}.parquet")["correct"].to_pylist() == [1]
    assert [trace.case_id for trace in read_traces(folder, with_heads=False)].count(answer.id) == 1


def test_feedback_is_an_event_behind_the_answer_s_own(labelled, answer, valkey_server):
    _, url, _ = labelled
    send(url, answer.id, {"label": "right", "spans": [{"start": 0, "end": 2, "label": "right"}]})
    mine = []
    for event in read(valkey_server.connection_url, start="0", idle_seconds=10):
        if event.subject == answer.id:
            mine.append(event)
            if isinstance(event.data, FeedbackData):
                break
    assert [event.sequence for event in mine] == list(range(len(mine)))
    assert mine[-1].type == "introspect.feedback.v1"
    assert mine[-1].data.label == "right"
    assert mine[-1].data.spans[0].end == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"label": "maybe"},
        {"label": "right", "mood": 1},
        {"label": "right", "spans": [{"start": 3, "end": 3, "label": "right"}]},
        {"label": "right", "spans": [{"start": 0, "end": 10_000, "label": "right"}]},
        {"label": "right", "spans": [{"start": 0, "end": 4, "label": "right"}, {"start": 2, "end": 6, "label": "wrong"}]},
        {"label": "right", "spans": [{"start": 0, "end": 1, "label": "right"}] * 300},
    ],
)
def test_feedback_that_makes_no_sense_is_refused(labelled, answer, body):
    _, url, folder = labelled
    assert send(url, answer.id, body).status_code == 400
    assert not (folder / f"labels-{answer.id}.parquet").exists()


def test_feedback_on_an_unknown_answer_is_404(labelled):
    assert send(labelled[1], "chatcmpl-none", {"label": "right"}).status_code == 404


def test_without_a_folder_feedback_is_published_only(url, client, settings, make):
    answer = client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=2)
    assert send(url, answer.id, {"label": "right"}).json() == {"id": answer.id, "label": "right", "published": True, "stored": False}


def test_a_folder_of_another_model_s_traces_is_refused_at_the_start(backend, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ServiceError, match="traces"):
        LabelStore(tmp_path, backend.model)
