# SPDX-License-Identifier: Apache-2.0
"""The image formats of the API: their MIME types, file extensions and first bytes."""

from __future__ import annotations

#: File extension by MIME type, as users expect it at the end of a key.
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

#: So many bytes from a file's start are enough for :func:`image_type` and :func:`mismatch`.
SIGNATURE_BYTES = 64


def essence(mime_type: str) -> str:
    """Return a MIME type without parameters, in lower case: ``image/png`` for ``Image/PNG; q=1``."""
    return mime_type.partition(";")[0].strip().lower()


def image_type(head: bytes) -> str | None:
    """Return the MIME type that a file's first bytes speak for; None if it is no PNG, JPEG or WebP."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return None


def mismatch(head: bytes, mime_type: str) -> str | None:
    """
    Tell what a file's first bytes are instead of what ``mime_type`` promises; None if they agree.

    A type that is not known here passes unless the bytes are those of a page or a message.
    """
    found, promised = image_type(head), essence(mime_type)
    if found == promised:
        return None
    if found is not None:
        return found
    if head.lstrip()[:1] in (b"<", b"{", b"["):
        return "a text, such as a proxy's page"
    if promised in EXTENSIONS:
        return "no such image"
    return None


def extension(mime_type: str) -> str:
    """Return the file extension for a MIME type: ``jpg`` for ``image/jpeg``, its subtype if unknown."""
    kind = essence(mime_type)
    return EXTENSIONS.get(kind) or kind.rpartition("/")[2] or "bin"
