"""LiteLLM against the running service. It pins older clients, so it runs in an environment of its own.

Collected only where INTROSPECT_LITELLM_PYTHON names an interpreter that has it (see this folder's conftest.py).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

CLIENT = Path(__file__).with_name("litellm_client.py")


@pytest.fixture(scope="module")
def found(url, settings, make):
    command = [os.environ["INTROSPECT_LITELLM_PYTHON"], str(CLIENT), url, settings.model, make.data_uri(make.encoded(make.picture()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_way_of_asking_gives_the_same_answer_with_its_signals(found, client, settings, make):
    plain = client.chat.completions.create(
        model=settings.model, messages=make.messages(), max_tokens=8, logprobs=True, top_logprobs=2, extra_body={"introspection": True}
    )
    expected = plain.choices[0].message.content
    assert found["plain"]["texts"] == found["async"]["texts"] == [expected]
    assert found["stream"]["text"] == found["async_stream"]["text"] == expected
    tokens = [entry.model_dump() for entry in plain.choices[0].logprobs.content]
    for way in ("plain", "stream", "async", "async_stream"):
        assert found[way]["tokens"] == tokens, way
    said = [found["plain"]["introspection"], found["async"]["introspection"], *found["stream"]["introspection"]]
    said += found["async_stream"]["introspection"]
    assert len(said) == 4
    own = plain.model_extra["introspection"]
    assert all({**each, "id": None} == {**own, "id": None} for each in said)


def test_usage_and_finish_reasons_arrive(found):
    assert found["plain"]["finish_reasons"] == ["length"]
    assert found["stream"]["usage"][-1] == found["plain"]["usage"]


def test_several_choices_arrive_with_their_signals(found):
    assert len(set(found["choices"]["texts"])) == 3
    assert [each["index"] for each in found["choices"]["introspection"]["choices"]] == [0, 1, 2]


def test_errors_are_litellm_s_own(found):
    assert found["too_long"] == ["BadRequestError", 400]
    assert found["no_such_model"] == ["NotFoundError", 404]
