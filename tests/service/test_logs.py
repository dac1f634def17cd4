"""JSON logs say what happened to each answer, and nothing of what was asked or answered."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import httpx

from introspect_service.logs import JsonLines


def lines(caplog):
    return [json.loads(JsonLines().format(record)) for record in caplog.records if record.name.startswith("introspect_service")]


def test_one_line_tells_of_an_answer_without_its_words(url, settings, make, caplog):
    body = {"model": settings.model, "messages": make.messages("what digit is at row 2 column 3 ?"), "max_tokens": 6, "introspection": True}
    with caplog.at_level(logging.INFO, "introspect_service"):
        response = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-1"}, timeout=60)
    answer = response.json()
    (line,) = lines(caplog)
    assert (line["event"], line["level"], line["logger"]) == ("completed", "info", "introspect_service.answers")
    assert (line["request_id"], line["completion_id"], line["model"]) == ("mine-1", answer["id"], settings.model)
    assert (line["completion_tokens"], line["finish_reason"]) == (6, "length")
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert line["kv_entries"] == round(answer["introspection"]["effective_budget"]["effective"], 2)
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert "confidence" not in line  # no probes here: absent, not null
    text = json.dumps(line)
    assert "digit" not in text
    assert answer["choices"][0]["message"]["content"] not in text


def test_a_request_that_cannot_be_served_is_told_with_its_reason(url, settings, caplog):
    body = {"model": settings.model, "messages": [{"role": "user", "content": "<image>"}], "max_tokens": 5}
    with caplog.at_level(logging.INFO, "introspect_service"):
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    (line,) = lines(caplog)
    assert (line["event"], line["reason"]) == ("failed", "invalid_request")


def test_an_exception_is_told_by_its_type_and_place_and_never_by_its_words(caplog):
    try:
        raise ValueError("the prompt was: my secret")
    except ValueError:
        logging.getLogger("introspect_service.test").exception("request %s failed", "c-1")
    (line,) = lines(caplog)
    assert (line["event"], line["exception"]) == ("request c-1 failed", "ValueError")
    assert line["at"][-1].startswith("test_logs.py:")
    assert "secret" not in json.dumps(line)


OTHERS = """
import logging
from transformers.utils import logging as transformers_logging
from introspect_service.logs import write_json_lines
transformers_logging.get_logger("transformers.tokenization").warning("before")
write_json_lines()
transformers_logging.get_logger("transformers.tokenization").warning("too long")
logging.getLogger("introspect.scheduler").error("failed")
"""


def test_what_libraries_say_is_a_line_of_json_too():
    done = subprocess.run([sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=120, check=True)
    said = [json.loads(line) for line in done.stderr.splitlines() if "before" not in line]
    assert [(line["logger"], line["event"]) for line in said] == [
        ("transformers.tokenization", "too long"), ("introspect.scheduler", "failed"),
    ]  # fmt: skip
