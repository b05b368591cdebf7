# SPDX-License-Identifier: Apache-2.0
"""Read and decompress the body of a response, within a limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GZIP_BEGINS = b"\x1f\x8b"
# Compressed once by the server and again by a proxy.
_MAX_LAYERS = 2


class TooLongError(ValueError):
    """A body is longer than the limit."""


class CutOffError(Exception):
    """
    A body broke off; ``__cause__`` says why.

    :param content: The part that was received.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__("the body broke off")
        self.content = content


def read(chunks: Iterator[bytes], content_encoding: str, max_bytes: int) -> bytes:
    """
    Read a body and decompress it.

    Requests ask for an uncompressed response. One that comes as gzip or deflate is paid for all the same, and so is one
    whose ``Content-Encoding`` doesn't match its bytes: the bytes decide.

    :param chunks: The raw body.
    :raises TooLongError: The body is longer than ``max_bytes`` before or after decompressing any layer; no more than
        that is kept in memory.
    :raises CutOffError: The connection broke, or the body's framing is invalid. The body may still be complete.
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
            # With the zlib header that the standard requires, or without it, as some servers send it.
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
    """Return the decompressed content, or None if it is not compressed in this way."""
    decompressor = zlib.decompressobj(window)
    try:
        decoded = decompressor.decompress(content, max_bytes + 1)
    except zlib.error:
        return None
    if len(decoded) > max_bytes:
        raise TooLongError
    # Accept truncated gzip: its first bytes identify it, and perhaps only the checksum is missing.
    return decoded if decompressor.eof or window > zlib.MAX_WBITS else None
