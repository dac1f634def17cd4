"""`GET /v1/signals`: the stream of all answers, read from the stream's server and handed on as Server-Sent Events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from introspect_service.errors import ApiError, ErrorBody
from introspect_service.events import STREAM_KEY, SignalEvent
from introspect_service.reader import entries_of
from introspect_service.sse import frame
from introspect_service.state import ServiceDep

logger = logging.getLogger(__name__)

router = APIRouter()

BLOCK_SECONDS = 5.0
AWAY_SECONDS = 1.0
_COUNT = 128
_ENTRY_ID = re.compile(r"\d{1,20}(?:-\d{1,20})?")


@router.get(
    "/v1/signals",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **{status: {"model": ErrorBody} for status in (400, 404, 503)},
    },
)
async def signals(
    service: ServiceDep,
    start: Annotated[str, Query(alias="from", max_length=41, description="$ for what comes from now on, 0 for all that is there.")] = "$",
    last_event_id: Annotated[str | None, Header(max_length=41)] = None,
) -> Response:
    """Everything that this and other replicas publish, as it comes.

    The events have the stream's own types (`introspect.completed.v1`) and entry ids; `Last-Event-ID` goes on behind one.
    `away` says that the stream's server does not answer, `back` that it does again.
    """
    if service.settings.redis_url is None:
        raise ApiError(404, "This server publishes no stream: it runs with `--redis off`.", code="stream_off")
    begin = last_event_id if last_event_id and _ENTRY_ID.fullmatch(last_event_id) else start
    if begin != "$" and not _ENTRY_ID.fullmatch(begin):
        raise ApiError(400, "from: expected $, 0 or the id of an entry of the stream.", param="from", code="invalid_value")
    return service.viewers.respond(follow(service.settings.redis_url, begin))


async def follow(url: str, start: str) -> AsyncGenerator[str, None]:
    """Entries of the stream behind `start` as frames; a server that is away is waited for."""
    timeout = BLOCK_SECONDS + AWAY_SECONDS
    redis = Redis.from_url(
        url, decode_responses=True, socket_timeout=timeout, socket_connect_timeout=AWAY_SECONDS, retry=Retry(NoBackoff(), 0)
    )
    last, is_away = start, False
    async with redis:
        while True:
            try:
                if last == "$":  # an id of its own: `$` would miss what comes between two reads
                    last = await _newest(redis)
                found = await redis.xread({STREAM_KEY: last}, count=_COUNT, block=int(1000 * BLOCK_SECONDS))
            except (RedisError, OSError, TimeoutError) as problem:
                if not is_away:
                    logger.info("the stream's server does not answer a viewer (%s)", type(problem).__name__)
                    is_away = True
                    yield frame("away", {})
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if is_away:
                is_away = False
                yield frame("back", {})
            for entry_id, fields in entries_of(found):
                last = entry_id
                if (said := _frame_of(entry_id, fields)) is not None:
                    yield said


async def _newest(redis: Redis) -> str:
    newest: Any = await redis.xrevrange(STREAM_KEY, count=1)
    return str(newest[0][0]) if newest else "0"


def _frame_of(entry_id: str, fields: dict[str, str]) -> str | None:
    """The entry as a frame; nothing where it is no event of this version: another program's, or a newer server's."""
    try:
        event = SignalEvent.from_fields(fields)
    except ValueError:
        return None
    return frame(event.type, event.model_dump(mode="json", serialize_as_any=True), entry_id)
