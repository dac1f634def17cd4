"""The page at `/` and what it consists of: a few static files and the sample pictures, read once and sent whole.

Nothing is loaded from elsewhere and no script or style stands in the HTML, so that the content-security policy can
forbid both. Files are sent from memory: there are no paths to escape from and no ranges to compute.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response

from introspect_service.errors import ApiError

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "static"
SAMPLES = FOLDER / "samples"
INDEX = "index.html"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Scripts, styles and requests of this server only; pictures from memory too."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    body: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """All files of the page by name, the samples as `samples/<name>`."""
    names = [path.relative_to(FOLDER).as_posix() for folder in (FOLDER, SAMPLES) if folder.is_dir() for path in folder.iterdir()]
    return {name: _read(FOLDER / name) for name in names if Path(name).suffix in _TYPES}


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    return PageFile(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:20]}"')


@router.get("/")
async def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The page."""
    return _send(INDEX, if_none_match)


@router.get("/page/{name:path}")
async def page_file(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A file of the page."""
    return _send(name, if_none_match)


def _send(name: str, known: str | None) -> Response:
    file = page_files().get(name)
    if file is None:
        raise ApiError(404, "The page has no such file.", code="not_found")
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if known == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
