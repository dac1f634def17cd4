"""Structured logs: one JSON object a line, and one line for each answer. No prompt, no picture and no answer is ever in them."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.runner import Failed, Listener
from introspect_service.signals import rounded

answers = logging.getLogger("introspect_service.answers")


class JsonLines(logging.Formatter):
    """A record as one line of JSON.

    `ts` (RFC 3339, UTC), `level`, `logger`, `event`, what the record carries as `fields`, and of an exception its type
    and where it was raised. Its message is left out, for it may quote what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"ts": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, separators=(",", ":"))


def write_json_lines(level: int = logging.INFO) -> None:
    """Let everything that is logged from now on go to the standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("introspect_service").setLevel(level)
    transformers = logging.getLogger("transformers")  # it writes its own lines otherwise
    transformers.handlers.clear()
    transformers.propagate = True


def answer_log(request_id: str, completion_id: str, model: str) -> Listener:
    """What writes one line at the end of an answer that was asked for now.

    Args:
        request_id: of the HTTP request.
        completion_id: the answer's id, its `subject` in the stream.
        model: the model's name.
    """
    arrived = time.perf_counter()
    fields: dict[str, Any] = {"request_id": request_id, "completion_id": completion_id, "model": model}

    def say(what: str) -> None:
        fields["seconds"] = round(time.perf_counter() - arrived, 6)
        answers.info(what, extra={"fields": {name: value for name, value in fields.items() if value is not None}})

    def hear(what: Progress | Failed) -> None:
        match what:
            case Begun(prompt):
                fields["prompt_tokens"] = len(prompt.token_ids)
                fields["kv_entries"] = round(prompt.budget.effective, 2)
            case Token():
                fields.setdefault("first_token_seconds", round(time.perf_counter() - arrived, 6))
            case Ended():
                said = what.signal
                fields.update(completion_tokens=what.tokens, finish_reason=what.finish_reason, probe_set=said.probe_set)
                fields.update(confidence=rounded(said.confidence), hallucination_risk=rounded(said.hallucination_risk))
                fields.update(in_domain=rounded(said.in_domain), strategy=said.strategy.label if said.strategy else None)
                say("completed")
            case Failed():
                fields["reason"] = what.reason
                say("failed")

    return hear
