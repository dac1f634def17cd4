"""The stream's description in AsyncAPI 3.0, its schemas generated from the models of the events.

AsyncAPI's Redis binding is an empty reservation, so what is Redis's own stands in
`x-` fields: the type of key, and the flat fields of an entry, which are a message's headers
(the CloudEvents attributes, each a string) and its payload (`data`, JSON).
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from introspect_service.events import DEAD_KEY, EVENT_DATA, STREAM_KEY, EventData, SignalEvent

_REF = "#/components/schemas/{model}"
_DESCRIPTION = """What a service says of its answers while it makes them, one entry an event.

Deliver at least once: after a broken connection an entry may be written twice; `source` and `id` together tell. `sequence` \
counts the events of one answer from 0, and a gap in it means that steps were dropped because the server was away. Fields and \
types that a consumer does not know are to be ignored."""


class _AbsentNotNull(GenerateJsonSchema):
    """What is not known is left out of the JSON, so nothing in it is ever null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if "default" in made and made["default"] is None:
            del made["default"]
        return made


def asyncapi_document() -> dict[str, Any]:
    """The document, as JSON values."""
    _, schemas = models_json_schema([(model, "validation") for model in EVENT_DATA], ref_template=_REF, schema_generator=_AbsentNotNull)
    messages = {_name(model): _message(model) for model in EVENT_DATA}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Introspect: the stream of signals", "version": "1", "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {
            "embedded": {
                "host": "127.0.0.1:6399",
                "pathname": "/0",
                "protocol": "redis",
                "description": "The default; --redis names another, 6.2 or newer.",
            }
        },
        "channels": {
            "signals": {
                "address": STREAM_KEY,
                "description": "A Redis stream; all replicas append to the same one.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "x-redis-type": "stream",
                "x-redis-dead-letters": DEAD_KEY,
            }
        },
        "operations": {
            "publish": {
                "action": "send",
                "channel": {"$ref": "#/channels/signals"},
                "summary": "XADD with MAXLEN ~; read it with XREAD, or in groups with XREADGROUP and XAUTOCLAIM.",
                "messages": [{"$ref": f"#/channels/signals/messages/{name}"} for name in messages],
            }
        },
        "components": {"messages": messages, "schemas": schemas["$defs"]},
    }


def asyncapi_text() -> str:
    """The document as it is committed."""
    return json.dumps(asyncapi_document(), indent=2, ensure_ascii=False) + "\n"


def _name(model: type[EventData]) -> str:
    return model.TYPE.split(".")[1]


def _message(model: type[EventData]) -> dict[str, Any]:
    words = inspect.getdoc(model) or ""
    return {
        "name": model.TYPE,
        "title": model.__name__,
        "summary": words.splitlines()[0],
        "contentType": "application/json",
        "headers": _headers(model),
        "payload": {"$ref": _REF.format(model=model.__name__)},
        "correlationId": {"location": "$message.header#/subject"},
        "x-droppable": model.DROPPABLE,
    }


def _headers(model: type[EventData]) -> dict[str, Any]:
    """The flat fields beside `data`: all are strings on the wire."""
    known: dict[str, dict[str, Any]] = {
        "specversion": {"const": "1.0"},
        "id": {"pattern": "^.+/[0-9]+$", "description": "`<completion id>/<sequence>`"},
        "source": {"description": "the server that published it, `/introspect/<replica>`"},
        "type": {"const": model.TYPE},
        "subject": {"description": "the completion's id"},
        "time": {"format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "sequence": {"pattern": "^[0-9]+$", "description": "counts the events of one completion from 0"},
    }
    names = [name for name in SignalEvent.model_fields if name != "data"]
    return {"type": "object", "required": names, "properties": {name: {"type": "string", **known[name]} for name in names}}
