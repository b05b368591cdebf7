# SPDX-License-Identifier: Apache-2.0
"""
Remove unreadable headers from the heads of HTTP responses.

h11 rejects a whole response over one header that it can't parse, and the paid image would be lost with it: a name with
a space in it, a length that is not a number, an unknown transfer coding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Anything longer is not a head.
_MAX_BYTES = 1024 * 1024
_HEAD_BEGINS = b"HTTP/"
_HEAD_ENDS = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/[0-9.]+ +1(?!01)[0-9][0-9]\b")
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_NO_TEXT = re.compile(rb"[\x00\r\x0b\x0c]")
_LENGTH = re.compile(rb"[0-9]{1,20}")


class ResponseHeads:
    """
    Reads from a connection and repairs the heads of its responses.

    :param read: The ``read`` method of httpcore's stream.
    """

    def __init__(self, read: Callable[..., bytes]) -> None:
        self._read = read
        self._is_past_head = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read like the stream, but return a head in one piece."""
        received = self._read(max_bytes, timeout)
        if self._is_past_head:
            return received
        sanitized = b""
        while True:
            start = received.lstrip(b"\r\n")
            # Not a head: a SOCKS proxy's replies come before the response.
            if not start.startswith(_HEAD_BEGINS[: len(start)]) or len(received) > _MAX_BYTES:
                return sanitized + received
            if start and (end := _HEAD_ENDS.search(start)):
                sanitized += sanitized_head(start[: end.start()])
                received = start[end.end() :]
                self._is_past_head = _INTERIM.match(start) is None
                if self._is_past_head or not received:
                    return sanitized + received
                continue
            more = self._read(max_bytes, timeout)
            if not more:
                return sanitized + received
            received += more


def sanitized_head(head: bytes) -> bytes:
    """Return a response's head and the blank line after it, without invalid headers."""
    status, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    kept: list[bytes] = []
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    was_kept = False
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            # A continuation of the previous line.
            if was_kept:
                kept[-1] += b" " + _NO_TEXT.sub(b" ", line).strip()
            continue
        name, colon, value = line.partition(b":")
        name, value = name.strip(), _NO_TEXT.sub(b" ", value).strip()
        was_kept = False
        if not colon or not _NAME.fullmatch(name):
            continue
        if name.lower() == b"content-length":
            lengths.update(length.strip() for length in value.split(b","))
        elif name.lower() == b"transfer-encoding":
            codings += [coding.strip().lower() for coding in value.split(b",")]
        else:
            kept.append(name + b": " + value)
            was_kept = True
    if codings and codings[-1] == b"chunked":
        kept.append(b"Transfer-Encoding: chunked")
    elif len({int(length) for length in lengths if _LENGTH.fullmatch(length)}) == len(lengths) == 1:
        # Otherwise the body ends when the connection closes.
        kept.append(b"Content-Length: " + lengths.pop())
    return b"\r\n".join([status, *kept, b"", b""])
