# SPDX-License-Identifier: Apache-2.0
"""What a browser may be sent of an object: images and videos, as identified by their bytes, not their names."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

from airflow_provider_getimg.api.media import HEAD_BYTES, type_of

#: Types that browsers show and can't run.
SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})
PLAYED_TYPES = frozenset({"video/mp4", "video/webm"})
_SIDE = 480
# More pixels take more memory to unpack than a thumbnail is worth.
_MAX_PIXELS = 20_000_000
# Unpacked, one image at a time.
_UNPACKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Shown:
    """What may be shown."""

    content: bytes
    mime_type: str


def shown_type(head: bytes) -> str:
    """
    Return the type of an image or a video that begins so.

    :raises ValueError: It is neither, or none that browsers show, whatever it is called.
    """
    mime_type = type_of(head[:HEAD_BYTES])
    if mime_type not in SHOWN_TYPES | PLAYED_TYPES:
        raise ValueError("neither an image nor a video")
    return mime_type


def thumbnail(content: bytes) -> Shown:
    """
    Return a small image of an object's content; the image itself where Pillow is not installed, or can't read it.

    One of more pixels than are unpacked is empty, which can be kept as well.

    :raises ValueError: It is no image.
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
            # The thumbnail doesn't say which side is up, so that it is turned itself.
            ImageOps.exif_transpose(small, in_place=True)
            file = io.BytesIO()
            small.save(file, "WEBP", quality=80)
    except Image.DecompressionBombError:
        return Shown(b"", whole.mime_type)
    except (OSError, ValueError, SyntaxError):
        return whole
    return Shown(file.getvalue(), "image/webp")
