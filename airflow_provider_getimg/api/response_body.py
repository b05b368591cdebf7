# SPDX-License-Identifier: Apache-2.0
"""The body of a response, decoded within a limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GZIP_BEGINS = b"\x1f\x8b"
# Compressed once by the server and once by a proxy.
_MAX_LAYERS = 2


class TooLongError(ValueError):
    """A body is longer than the limit."""


class CutOffError(Exception):
    """
    A body broke off; the cause is why.

    :param content: What had come of it.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__("the body broke off")
        self.content = content


def read(chunks: Iterator[bytes], content_encoding: str, max_bytes: int) -> bytes:
    """
    Read a body and decompress it.

    Requests ask for an uncompressed response. One that comes as gzip or deflate is paid for all the same, and so is one whose
    ``Content-Encoding`` is something else than what its bytes are: the bytes decide.

    :param chunks: The body as it was sent.
    :raises TooLongError: It is longer than ``max_bytes`` before or after any layer of compression: no more than that is
        kept in memory.
    :raises CutOffError: The connection broke, or what frames the body is wrong. It may be all there nevertheless.
    """
    body = bytearray()
    try:
        for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                raise TooLongError
    except TooLongError:
        raise
    except Exception as error:
        raise CutOffError(_decoded(bytes(body), content_encoding, max_bytes)) from error
    return _decoded(bytes(body), content_encoding, max_bytes)


def _decoded(content: bytes, content_encoding: str, max_bytes: int) -> bytes:
    may_be_deflate = "deflate" in content_encoding.lower()
    for _ in range(_MAX_LAYERS):
        if content.startswith(_GZIP_BEGINS):
            decoded = _decompressed(content, zlib.MAX_WBITS | 16, max_bytes)
        elif may_be_deflate:
            # With the header that the standard wants, or without it, as some send it.
            decoded = _decompressed(content, zlib.MAX_WBITS, max_bytes)
            if decoded is None:
                decoded = _decompressed(content, -zlib.MAX_WBITS, max_bytes)
        else:
            break
        if decoded is None:
            break
        content = decoded
    return content


def _decompressed(content: bytes, window: int, max_bytes: int) -> bytes | None:
    """Return the content, or None where it is not compressed in this way."""
    decompressor = zlib.decompressobj(window)
    try:
        decoded = decompressor.decompress(content, max_bytes + 1)
    except zlib.error:
        return None
    if len(decoded) > max_bytes:
        raise TooLongError
    # Gzip shows by its first bytes that it is; what is missing at its end may be its checksum alone.
    return decoded if decompressor.eof or window > zlib.MAX_WBITS else None
