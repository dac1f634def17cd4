"""Errors of the service part, and the one shape in which a client sees any of them.

The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`. A
message tells the caller what to change; nothing of the caller's bytes, of the
server's paths or of another request is ever in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel


class ServiceError(Exception):
    """Base of every error that `introspect_service` raises on purpose."""


class PortInUseError(ServiceError):
    """A port that the service needs is taken by another program."""


class ImageError(ServiceError):
    """A picture was refused; the message is safe to show to the caller."""


class QueueFullError(ServiceError):
    """No more requests can wait; `retry_after` is a guess in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue of waiting requests is full")
        self.retry_after = retry_after


class ApiError(ServiceError):
    """An error to be sent to the client as it is.

    Attributes:
        status: HTTP status.
        message: what was expected, what came, what to do.
        param: the field at fault, such as `messages.0.content.1.image_url.url`.
        code: a word for programs.
        headers: extra response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error response; also a `data:` chunk where a stream breaks off."""

    error: ErrorDetail


def error_body(error: ApiError) -> ErrorBody:
    """The JSON body of `error`."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return ErrorBody(error=ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code))


def internal_error() -> ApiError:
    """The one thing said of a failure that is ours."""
    return ApiError(500, "The server failed to answer this request. The request id is in the X-Request-Id header.", code="internal_error")
