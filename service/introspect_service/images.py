"""Pictures from `data:` URIs, with every size checked before the work that it would cause.

Nothing is fetched here (see `remote_images`): a remote address or a file is refused. What a decoder says
about hostile bytes is not passed on (one such message once told a heap address,
CVE-2026-22778).
"""

from __future__ import annotations

import binascii
import io
import re

from PIL import Image, ImageOps

from introspect_service.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP")

_HEADER = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)
_LONGEST_HEADER = 32
_UNREADABLE = "The picture cannot be read as png, jpeg or webp."


def decode_data_uri(uri: str, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """The RGB picture in a `data:` URI.

    Args:
        uri: `data:image/png;base64,...`; jpeg and webp likewise.
        max_bytes: largest encoded picture, in bytes.
        max_pixels: most pixels, checked before any of them is decoded.

    Raises:
        ImageError: it is no such URI, or too large, or not a picture.
    """
    header = _HEADER.match(uri[:_LONGEST_HEADER])
    if header is None:
        if uri[:5].lower() == "data:":
            raise ImageError("Expected a picture as data:image/png;base64,... (or jpeg, or webp).")
        raise ImageError("Remote pictures are not fetched: send the picture itself as data:image/png;base64,... (or jpeg, or webp).")
    if len(uri) - header.end() > 4 * ((max_bytes + 2) // 3):
        raise ImageError(f"The picture is larger than {max_bytes} bytes.")
    try:
        data = binascii.a2b_base64(uri[header.end() :], strict_mode=True)
    except (binascii.Error, ValueError):
        raise ImageError("The picture's base64 is not valid.") from None
    if len(data) > max_bytes:
        raise ImageError(f"The picture is larger than {max_bytes} bytes.")
    return decode_image(data, max_pixels=max_pixels)


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame of an encoded picture, upright by its EXIF tag, in RGB.

    Raises:
        ImageError: it is not a png, jpeg or webp picture, or has more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(f"The picture has {width} x {height} pixels; at most {max_pixels} are left to this request.")
            picture.load()
            return ImageOps.exif_transpose(picture).convert("RGB")
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"The picture has more than {max_pixels} pixels.") from None
    except Exception:  # noqa: BLE001 - decoders raise anything on hostile bytes, and what they say must not get out
        raise ImageError(_UNREADABLE) from None
