"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from introspect_service.answers import AnswerWriter, as_json
from introspect_service.choices import choice_id, choice_requests
from introspect_service.conversation import check_counts, refused_picture, remote_pictures, to_engine_request
from introspect_service.errors import ApiError, ErrorBody, ImageError, QueueFullError, error_body
from introspect_service.generation import Ended, Token
from introspect_service.logs import answer_log
from introspect_service.publisher import AnswerPublisher
from introspect_service.responses import ChatCompletion, TokenLogprob
from introspect_service.run import Run
from introspect_service.runner import Listener
from introspect_service.schemas import ChatRequest
from introspect_service.state import Service, ServiceDep

router = APIRouter()

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 404, 408, 413, 500, 503)}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_ERRORS)
async def chat_completions(chat: ChatRequest, http: Request, service: ServiceDep) -> Response:
    """Answer about text and pictures, with signals where `introspection` asks for them.

    With `stream`, Server-Sent Events: `data: {chunk}` and at last `data: [DONE]`. A token is sent when its signal
    is final, which is one step after it was chosen.
    """
    if chat.model != service.backend.model.name:
        raise ApiError(
            404, f"The model {chat.model[:100]!r} is not served here; see GET /v1/models.", param="model", code="model_not_found"
        )
    if service.draining.is_set():
        service.metrics.rejections.labels("draining").inc()
        raise ApiError(503, "This server is about to stop; ask another, or again.", code="draining", headers={"Retry-After": "5"})
    completion_id = f"chatcmpl-{uuid.uuid4().hex}"
    run = await _begin(chat, completion_id, service, http.scope["introspect.request_id"])
    run.cancel_when_gone(http)
    await run.begun()
    writer = AnswerWriter(completion_id, chat, service.backend)
    if chat.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(run, writer), media_type="text/event-stream", headers=headers)
    whole = await _collect(run, writer, chat.choices)
    return Response(whole, media_type="application/json")


async def _begin(chat: ChatRequest, completion_id: str, service: Service, request_id: str) -> Run:
    check_counts(chat, service.settings)
    # Before the pictures are decoded: the client waits for that too.
    heard = [_listeners(service, request_id, choice_id(completion_id, index)) for index in range(chat.choices)]
    scorer, drift = service.probes.scorer, service.probes.drift  # for good: what is accepted now keeps them
    try:
        service.runner.check_room(chat.choices)
        fetched = await _fetch(chat, service)
        async with service.decoders:
            request = await asyncio.to_thread(to_engine_request, chat, completion_id, service.settings, fetched)
        requests = choice_requests(request, chat.choices)
        service.runner.check_room(len(requests))  # nothing is awaited from here on: all of them are taken, or none
        publishers = [_publisher(service, each.id, scorer.name) for each in requests]
        others = [
            (service.records.listener(each.id, publisher), drift.hear, *listeners)
            for each, publisher, listeners in zip(requests, publishers, heard, strict=True)
        ]
        return Run(publishers, lambda index, listener: service.runner.submit(requests[index], listener, scorer), others)
    except QueueFullError as full:
        service.metrics.rejections.labels("queue_full").inc()
        raise ApiError(
            503, "Too many requests are waiting; try again later.", code="queue_full", headers={"Retry-After": str(full.retry_after)}
        ) from None


async def _fetch(chat: ChatRequest, service: Service) -> dict[str, bytes]:
    """The pictures that are not in the request itself, where the operator allows it; else their addresses are refused later."""
    places = list(remote_pictures(chat)) if service.remote_images is not None else []
    if service.remote_images is None or not places:
        return {}
    found = await service.remote_images.fetch_all(url for _, url in places)
    for param, url in places:
        if isinstance(refused := found[url], ImageError):
            raise refused_picture(refused, param)
    return {url: data for url, data in found.items() if isinstance(data, bytes)}


def _listeners(service: Service, request_id: str, choice: str) -> tuple[Listener, ...]:
    return service.metrics.listener(), answer_log(request_id, choice, service.backend.model.name)


def _publisher(service: Service, choice: str, probe_set: str | None) -> AnswerPublisher:
    return AnswerPublisher(
        service.bus,
        f"/introspect/{service.settings.replica}",
        choice,
        service.backend.model.name,
        service.backend.feature_schema,
        alert_risk=service.settings.alert_risk,
        probe_set=probe_set,
    )


async def _collect(run: Run, writer: AnswerWriter, choices: int) -> str:
    tokens: list[list[TokenLogprob]] = [[] for _ in range(choices)]
    try:
        async for index, what in run.rest():
            if isinstance(what, Ended):
                writer.end(index, what)
            elif (entry := writer.token(index, what)) is not None:
                tokens[index].append(entry)
        return writer.whole(tokens, await run.published())
    finally:
        run.close()


async def _stream(run: Run, writer: AnswerWriter) -> AsyncIterator[str]:
    try:
        for chunk in writer.opening():
            yield _data(as_json(chunk))
        async for index, what in run.rest():
            if isinstance(what, Token):
                if (piece := writer.piece(index, what)) is not None:
                    yield _data(piece)
            else:
                writer.end(index, what)
                for last in writer.closing(index, what, await run.published() if writer.is_complete else ()):
                    yield _data(last)
    except ApiError as error:
        yield _data(as_json(error_body(error)))
    finally:
        run.close()
    yield "data: [DONE]\n\n"


def _data(line: str) -> str:
    return f"data: {line}\n\n"
