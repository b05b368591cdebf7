# SPDX-License-Identifier: Apache-2.0
"""The image formats of the API: their MIME types, file extensions and first bytes."""

from __future__ import annotations

#: File extension by MIME type, as users expect it at the end of a key.
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

#: So many bytes from a file's start are enough for :func:`image_type`.
SIGNATURE_BYTES = 12


def image_type(head: bytes) -> str | None:
    """Return the MIME type that a file's first bytes speak for; None if it is no PNG, JPEG or WebP."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return None


def extension(mime_type: str) -> str:
    """Return the file extension for a MIME type: ``jpg`` for ``image/jpeg``, its subtype if unknown."""
    essence = mime_type.partition(";")[0].strip().lower()
    return EXTENSIONS.get(essence) or essence.rpartition("/")[2] or "bin"
