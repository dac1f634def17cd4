"""`/v1/introspection/{id}`: what every head did in a recent answer, whole or while it is made, and feedback on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from introspect_service.answer_report import CANDIDATES, AnswerReport, HeadReport, answer_report, head_report, recorded_tokens
from introspect_service.compact import STATISTICS, head_map, to_safetensors
from introspect_service.errors import ApiError, ErrorBody
from introspect_service.events import FeedbackData, SpanLabel
from introspect_service.pieces import Pieces
from introspect_service.publisher import CONFIRM_SECONDS
from introspect_service.records import AnswerRecord
from introspect_service.sse import frame
from introspect_service.state import Service, ServiceDep

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/introspection")

MAX_SPANS = 256

CompletionId = Annotated[str, Field(max_length=128)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


@router.get(
    "/{completion_id}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}, **_errors(400, 404)},
)
async def head_statistics(completion_id: CompletionId, service: ServiceDep) -> Response:
    """All head statistics of a recent answer as one safetensors file; the answer's JSON is in its metadata, under `answer`."""
    record = find(completion_id, service)
    report = answer_report(record, service.backend)
    body = to_safetensors(record.prompt, record.steps, record.rows, report.model_dump_json(), report.feature_schema)
    name = f'attachment; filename="{record.id}.safetensors"'
    return Response(body, media_type="application/octet-stream", headers={"Content-Disposition": name, "Cache-Control": "no-store"})


@router.get("/{completion_id}/answer", responses=_errors(400, 404))
async def answer(completion_id: CompletionId, service: ServiceDep) -> AnswerReport:
    """A recent answer as JSON: tokens, candidates, signals, and what the budget kept."""
    return answer_report(find(completion_id, service), service.backend)


@router.get("/{completion_id}/heads", responses=_errors(400, 404))
async def heads(
    completion_id: CompletionId,
    service: ServiceDep,
    token: Annotated[int, Query(ge=0, le=1_000_000)],
    statistic: Annotated[str, Query(max_length=64)] = "mass.image",
    row: Literal["producing", "reading"] = "producing",
) -> HeadReport:
    """One statistic of every head for one token, and where each head looks."""
    return head_report(find(completion_id, service), token, statistic, row)


@router.get(
    "/{completion_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **_errors(400, 404, 503)},
)
async def events(
    completion_id: CompletionId,
    service: ServiceDep,
    statistics: Annotated[str, Query(max_length=1_000, description="Names, separated by commas, or `all`; none by default.")] = "",
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Response:
    """An answer while it is made, from its beginning: `token` events, and at last `completed` or `failed`.

    The id of an event is the token's index; `Last-Event-ID` goes on behind it.
    """
    names = _statistic_names(statistics)
    start = int(last_event_id) + 1 if last_event_id is not None and last_event_id.isdecimal() else 0
    return service.viewers.respond(_follow(find(completion_id, service), service, names, start))


class Feedback(BaseModel):
    """Whether an answer is right, and which of its parts are; offsets are characters of the answer's text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    label: Literal["right", "wrong"]
    spans: Annotated[list[SpanLabel], Field(max_length=MAX_SPANS)] = []


class FeedbackTaken(BaseModel):
    """What became of a label: whether the stream's server has confirmed it, and whether it is stored for training."""

    id: str
    label: Literal["right", "wrong"]
    published: bool
    stored: bool


@router.post("/{completion_id}/feedback", responses=_errors(400, 404, 408, 409, 413))
async def feedback(completion_id: CompletionId, said: Feedback, service: ServiceDep) -> FeedbackTaken:
    """Say whether a recent answer is right. It is published, and stored with the answer where the server keeps traces."""
    record = find(completion_id, service)
    if record.ended is None:
        raise ApiError(409, "The answer is not complete: label it when it is.", code="not_complete")
    _check_spans(said.spans, len(record.ended.text))
    data = FeedbackData(model=service.backend.model.name, label=said.label, spans=tuple(said.spans))
    if service.labels is not None:
        await asyncio.to_thread(service.labels.write, record, data)
    delivery = record.publisher.feedback(data)
    published = await delivery.confirmed(CONFIRM_SECONDS if service.bus.connected else 0)
    return FeedbackTaken(id=record.id, label=said.label, published=published, stored=service.labels is not None)


def find(completion_id: str, service: Service) -> AnswerRecord:
    """The answer of that id.

    Raises:
        ApiError: 404, it is not kept here.
    """
    record = service.records.get(completion_id)
    if record is None:
        message = (
            f"No answer of that id is kept here: this server keeps its newest {service.records.max_answers} answers, within "
            f"{service.records.max_bytes} bytes. It is unknown, was dropped for newer ones, or was given by another replica."
        )
        raise ApiError(404, message, param="completion_id", code="answer_not_found")
    return record


def _statistic_names(given: str) -> list[str]:
    names = list(STATISTICS) if given == "all" else [name for name in given.split(",") if name]
    unknown = [name for name in names if name not in STATISTICS]
    if unknown:
        message = f"statistics: expected all, or some of {', '.join(STATISTICS)}."
        raise ApiError(400, message, param="statistics", code="invalid_value")
    return names


def _check_spans(spans: list[SpanLabel], length: int) -> None:
    end = 0
    for place, span in enumerate(sorted(spans, key=lambda each: each.start)):
        if not end <= span.start < span.end <= length:
            fault = f"number {place} from the left is not"
            message = f"spans: expected parts of the answer's {length} characters, none empty, none over another; {fault}."
            raise ApiError(400, message, param="spans", code="invalid_value")
        end = span.end


async def _follow(record: AnswerRecord, service: Service, names: list[str], start: int) -> AsyncGenerator[str, None]:
    pieces, told = Pieces(service.backend.model.tokenizer, CANDIDATES), 0
    while True:
        changed, rows, seen = record.bell.next, record.rows, len(record.steps)
        for token in recorded_tokens(record, pieces, told):
            if token.index >= start:
                data = token.model_dump(mode="json")
                if names and token.index < len(rows):
                    data["statistics"] = {name: head_map(rows[token.index], name) for name in names}
                yield frame("token", data, str(token.index))
        told = seen
        if told == len(record.steps):
            if not record.is_open:
                yield _last(record, service)
                return
            await changed.wait()


def _last(record: AnswerRecord, service: Service) -> str:
    if record.dropped:
        return frame("failed", {"reason": "dropped", "message": "the answer was dropped for newer ones"})
    if record.failed is not None:
        return frame("failed", {"reason": record.failed.reason, "message": record.failed.message})
    report = answer_report(record, service.backend)
    whole = report.model_dump(mode="json")
    return frame("completed", {name: whole[name] for name in ("id", "text", "finish_reason", "seconds", "introspection")})
