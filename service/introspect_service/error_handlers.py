"""Every error of the app, the framework's own included, comes out in OpenAI's shape; validation is a 400, never a 422."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from introspect_service.errors import ApiError, error_body, internal_error

_PART_TAGS = ("text", "image_url")
_SAID = {
    404: ("Unknown route; GET /docs lists those that are served.", "not_found"),
    405: ("This method is not allowed on this route.", "method_not_allowed"),
}


def param_of(loc: Sequence[int | str]) -> str | None:
    """The dotted path of a field, from pydantic's location: without `body` and without the tag of a content part."""
    path = list(loc[1:] if loc and loc[0] == "body" else loc)
    kept = [item for place, item in enumerate(path) if not (item in _PART_TAGS and place >= 2 and path[place - 2] == "content")]
    return ".".join(str(item) for item in kept) or None


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """A 400 that names the first field at fault; the caller's value is not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    param = param_of(first["loc"])
    if param is None:
        return ApiError(400, "Send a JSON object, with Content-Type: application/json.", code="invalid_json")
    more = f" ({len(errors) - 1} more fields are wrong)" if len(errors) > 1 else ""
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{param}: {first['msg'].removeprefix('Value error, ')}{more}", param=param, code=code)


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error_body(error).model_dump(), status_code=error.status, headers=error.headers)


async def _on_api_error(_: Request, error: Exception) -> JSONResponse:
    return _respond(error if isinstance(error, ApiError) else internal_error())


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    return _respond(from_validation(error.errors()) if isinstance(error, RequestValidationError) else internal_error())


async def _on_client_error(_: Request, error: Exception) -> JSONResponse:
    """An error that the framework raised; its own words but where ours say more."""
    status = int(getattr(error, "status_code", 400))
    message, code = _SAID.get(status, (str(getattr(error, "detail", "The request is not valid.")), None))
    return _respond(ApiError(status, message, code=code, headers=getattr(error, "headers", None)))


async def _on_anything(_: Request, __: Exception) -> JSONResponse:
    return _respond(internal_error())


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app`, the framework's own included, come out in OpenAI's shape."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    for status in range(400, 500):  # whichever HTTPException it is: FastAPI's, or that of the framework below it
        app.add_exception_handler(status, _on_client_error)
    app.add_exception_handler(Exception, _on_anything)
