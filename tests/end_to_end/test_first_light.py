"""What a newcomer does first: start the service, ask about handwriting, see the signals beside the answer and on the stream."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from introspect_service.events import CompletedData
from introspect_service.reader import read

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]
SCENE, PHOTO = "samples/scene-1.png", "samples/photo-flower.jpg"
QUESTION = "what digit is at row 2 column 3 ?"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served():
    """`introspect serve` as a process: what it printed, its address and its stream's."""
    port, redis_port = free_port(), free_port()
    arguments = [*COMMAND, "serve", "--port", str(port), "--redis-port", str(redis_port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            lines = []
            while not (lines and "another terminal" in lines[-1]):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                lines.append(line)
            yield SimpleNamespace(printed="".join(lines), url=f"http://127.0.0.1:{port}/v1", stream=f"redis://127.0.0.1:{redis_port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def ask(served):
    """Asks about a sample picture with the real openai client."""
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id

        def put(image, question, introspection=True, **options):
            kind = "jpeg" if image.endswith(".jpg") else "png"
            uri = f"data:image/{kind};base64,{base64.b64encode((ROOT / image).read_bytes()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
            chat = [{"role": "user", "content": content}]
            return client.chat.completions.create(
                model=model, messages=chat, logprobs=True, extra_body={"introspection": introspection}, **options
            )

        yield put


def signals_of(answer):
    return answer.model_extra["introspection"]


def test_the_printed_question_works_as_printed(served):
    question = served.printed[served.printed.index("curl") : served.printed.index("\nEOF\n") + 5]
    done = subprocess.run(["bash", "-c", question], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    signals = json.loads(done.stdout)["introspection"]
    assert signals["calibrated"] is True
    assert signals["probe_set"] in served.printed
    assert 0 < signals["confidence"] < 1
    assert 0 < signals["hallucination_risk"] < 1
    assert signals["strategy"]["label"] in signals["strategy"]["probabilities"]
    assert signals["published"] is True


def test_claims_of_a_description_are_told_token_by_token_and_span_by_span(ask):
    answer = ask(SCENE, "describe everything")
    text, spans = answer.choices[0].message.content, signals_of(answer)["spans"]
    assert len(spans) >= 6
    assert [text[span["start"] : span["end"]] for span in spans] == [span["text"] for span in spans]
    told = [entry.model_extra["introspection"] for entry in answer.choices[0].logprobs.content]
    claims = [token for token in told if "hallucination_risk" in token]
    assert [token["hallucination_risk"] for token in claims] == [span["hallucination_risk"] for span in spans]
    assert all({"internal", "prior", "strategy"} <= set(token) and token["kind"] == "claim" for token in claims)
    assert len(claims) < len(told), "tokens that decide nothing carry no risk"
    assert all(0 <= token["confidence"] <= 1 and token["final"] for token in told)


def test_the_stream_carries_what_the_client_was_told(ask, served):
    answer = ask(SCENE, QUESTION)
    completed = next(
        event for event in read(served.stream, start="0", idle_seconds=20) if event.id.startswith(answer.id) and is_last(event)
    )
    told = {**signals_of(answer)}
    assert told.pop("published") is True
    assert json.loads(completed.data.introspection.model_dump_json()) == told


def is_last(event):
    return isinstance(event.data, CompletedData)


def test_what_the_model_was_not_taught_gets_a_note_and_little_confidence(ask):
    known, photo, words = ask(SCENE, QUESTION), ask(PHOTO, QUESTION), ask(SCENE, "why do philosophers disagree about consciousness ?")
    assert "note" not in signals_of(known)
    for outside in (photo, words):
        assert signals_of(outside)["note"]
        assert signals_of(outside)["in_domain"] < 0.5 < signals_of(known)["in_domain"]
        assert signals_of(outside)["confidence"] < min(0.5, signals_of(known)["confidence"])


def test_under_a_tight_budget_the_signals_are_still_calibrated_and_the_budget_is_told(ask):
    answer = ask(SCENE, "describe everything", {"kv_budget": "25%", "policy": "snapkv"})
    budget = signals_of(answer)["effective_budget"]
    assert budget["effective"] <= budget["nominal"] == answer.usage.prompt_tokens // 4
    assert signals_of(answer)["calibrated"] is True


def test_ask_shows_the_same_as_the_service(ask):
    done = subprocess.run(
        [*COMMAND, "ask", SCENE, QUESTION, "--json"], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT, env=os.environ
    )
    asked, served = json.loads(done.stdout), ask(SCENE, QUESTION)
    assert asked["answer"] == served.choices[0].message.content
    assert asked["introspection"]["confidence"] == pytest.approx(signals_of(served)["confidence"], abs=1e-4)
    assert asked["introspection"]["strategy"]["label"] == signals_of(served)["strategy"]["label"]
