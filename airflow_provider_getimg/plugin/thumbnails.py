# SPDX-License-Identifier: Apache-2.0
"""What may be sent to a browser: images and videos, identified by their bytes, not their names."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

from airflow_provider_getimg.api.media import HEAD_BYTES, type_of

#: Types that browsers show and never execute.
SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})
PLAYED_TYPES = frozenset({"video/mp4", "video/webm"})
_SIDE = 480
# More pixels take more memory to decode than a thumbnail is worth.
_MAX_PIXELS = 20_000_000
# Decode one image at a time.
_UNPACKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Shown:
    """Content that may be shown."""

    content: bytes
    mime_type: str


def shown_type(head: bytes) -> str:
    """
    Return the type of an image or a video from its first bytes.

    :raises ValueError: It is neither, or of a type that browsers don't show, whatever its name.
    """
    mime_type = type_of(head[:HEAD_BYTES])
    if mime_type not in SHOWN_TYPES | PLAYED_TYPES:
        raise ValueError("neither an image nor a video")
    return mime_type


def thumbnail(content: bytes) -> Shown:
    """
    Return a thumbnail of an object's content; the image itself if Pillow is not installed or can't read it.

    An image with too many pixels to decode gives an empty result, which can be cached as well.

    :raises ValueError: It is not an image.
    """
    whole = Shown(content, shown_type(content))
    if whole.mime_type not in SHOWN_TYPES:
        raise ValueError("not an image")
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return whole
    try:
        with _UNPACKING, Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "GIF")) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.draft("RGB", (_SIDE, _SIDE))
            small = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
            small.thumbnail((_SIDE, _SIDE))
            # The thumbnail carries no orientation tag, so its pixels are rotated.
            ImageOps.exif_transpose(small, in_place=True)
            file = io.BytesIO()
            small.save(file, "WEBP", quality=80)
    except Image.DecompressionBombError:
        return Shown(b"", whole.mime_type)
    except (OSError, ValueError, SyntaxError):
        return whole
    return Shown(file.getvalue(), "image/webp")
