"""A FastStream consumer of alerts. To run it: pip install 'faststream[redis,cli]', then `faststream run faststream_alerts:app`.

FastStream hands over an entry's `data` as the model that a handler asks for; all
fields of the entry are in `message.raw_message["data"]`. The stream carries events
of every type, so a filter picks one. `INTROSPECT_REDIS` names the server.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from faststream import FastStream
from faststream.redis import RedisBroker, RedisMessage, StreamSub

from introspect_service.events import STREAM_KEY, AlertData
from introspect_service.reader import DEFAULT_URL

logger = logging.getLogger(__name__)

broker = RedisBroker(os.environ.get("INTROSPECT_REDIS", DEFAULT_URL))
app = FastStream(broker)
on_entry = broker.subscriber(stream=StreamSub(STREAM_KEY, group="faststream-alerts", consumer=f"{socket.gethostname()}-{os.getpid()}"))


def is_alert(message: RedisMessage) -> bool:
    """Whether the entry is an alert."""
    return message.raw_message["data"].get(b"type") == AlertData.TYPE.encode()


@on_entry(filter=is_alert)
async def alert(data: AlertData, message: RedisMessage) -> None:
    """Do something about an alert."""
    subject = message.raw_message["data"][b"subject"].decode()
    logger.warning("%s: risk %.2f of %r, over %.2f", subject, data.hallucination_risk, data.text, data.threshold)


@on_entry
async def other(data: dict[str, Any]) -> None:
    """Everything else is acknowledged and forgotten."""
