"""The examples and the command run as a user runs them, against real servers."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from introspect_service.events import STREAM_KEY, AlertData, FailedData, SignalEvent

EXAMPLES = Path(__file__).parents[2] / "service" / "examples"
COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]

ALERT = AlertData(model="m", level="answer", hallucination_risk=0.75, threshold=0.5, start=0, end=1, text="7")
FAILED = FailedData(model="m", reason="cancelled", message="")


def put(broker, *data):
    with broker.client() as client:
        for number, each in enumerate(data):
            client.xadd(STREAM_KEY, SignalEvent.make("c", number, "/introspect/test", each).to_fields())


@pytest.mark.anyio
async def test_faststream_hands_alerts_over_as_the_model_and_passes_over_the_rest(broker, monkeypatch, caplog):
    import anyio

    monkeypatch.setenv("INTROSPECT_REDIS", broker.url)
    spec = importlib.util.spec_from_file_location("faststream_alerts_example", EXAMPLES / "faststream_alerts.py")
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    with caplog.at_level(logging.WARNING, spec.name), broker.client() as client:
        await example.broker.start()
        try:
            put(broker, FAILED, ALERT, FAILED)
            deadline = time.monotonic() + 20
            while (group := client.xinfo_groups(STREAM_KEY)[0])["lag"] or group["pending"]:
                assert time.monotonic() < deadline, group
                await anyio.sleep(0.02)
        finally:
            await example.broker.stop()
    assert [r.getMessage() for r in caplog.records if r.name == spec.name] == ["c: risk 0.75 of '7', over 0.50"]


def test_two_commands_share_the_events_of_a_group(broker):
    put(broker, *[ALERT, FAILED] * 20)
    command = [*COMMAND, "consume", "--redis", broker.url, "--group", "pager", "--type", "alert", "--idle-seconds", "0.5", "--name"]
    first, second = (subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab")
    printed = [*first.communicate(timeout=60)[0].splitlines(), *second.communicate(timeout=60)[0].splitlines()]
    assert first.returncode == second.returncode == 0
    assert sorted(json.loads(line)["sequence"] for line in printed) == list(range(0, 40, 2))
    assert json.loads(printed[0])["data"]["threshold"] == 0.5
    with broker.client() as client:
        assert client.xpending(STREAM_KEY, "pager")["pending"] == 0


def test_the_command_ends_when_it_is_told_to_and_leaves_the_group(broker):
    put(broker, ALERT)
    command = [*COMMAND, "consume", "--redis", broker.url, "--group", "pager"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        assert json.loads(process.stdout.readline())["data"]["text"] == "7"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with broker.client() as client:
        assert client.xinfo_consumers(STREAM_KEY, "pager") == []


def test_the_judge_keeps_score(broker):
    from introspect_service.events import CompletedData
    from introspect_service.signals import AnswerIntrospection, BudgetReport

    budget = BudgetReport(policy="full", nominal=5, effective=5, prompt_tokens=5)
    said = AnswerIntrospection(id="c", confidence=0.25, calibrated=True, effective_budget=budget, feature_schema="s")
    done = CompletedData(model="m", text="7", finish_reason="stop", prompt_tokens=5, completion_tokens=1, seconds=0.1, introspection=said)
    put(broker, ALERT, done)
    with subprocess.Popen([sys.executable, str(EXAMPLES / "judge.py"), broker.url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "c: '7'; mean confidence 0.25, 1 alerts so far\n"
        process.kill()


def test_a_type_that_does_not_exist_is_one_line_and_exit_code_1(broker):
    command = [*COMMAND, "consume", "--redis", broker.url, "--group", "g", "--type", "novelty"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "introspect.alert.v1" in done.stderr
    assert "Traceback" not in done.stderr
