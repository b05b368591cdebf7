# SPDX-License-Identifier: Apache-2.0
"""A downloaded file on its way to S3: in memory while it is small, then on disk, and verified as a whole."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

from airflow_provider_getimg.api.errors import DownloadError
from airflow_provider_getimg.api.media import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

#: A file of up to this many bytes stays in memory: 16 at once, with their overhead, take less than 200 MiB.
MEMORY_BYTES = 5 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_GZIP = b"\x1f\x8b\x08"
_GZIP_WINDOW = zlib.MAX_WBITS | 16


class TooLargeError(Exception):
    """The file exceeds the size limit."""


class Spool:
    """
    The bytes of one file. Use it as a context manager: leaving it frees memory and disk.

    :param name: The file's name in messages.
    :param max_bytes: The largest size to accept.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        # Not a SpooledTemporaryFile: it returns its bytes only as a copy, which doubles the memory.
        self._memory = io.BytesIO()
        self._disk: BinaryIO | None = None
        self._digest = hashlib.sha256()
        #: The number of bytes written so far, and the first of them.
        self.size = 0
        self.head = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Free memory and disk. Idempotent."""
        self._memory.close()
        if self._disk is not None:
            # Closing writes what a full disk rejected.
            with suppress(OSError):
                self._disk.close()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes written so far, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """
        Append bytes.

        :raises TooLargeError: The total exceeds ``max_bytes``.
        :raises DownloadError: The disk is full.
        """
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise TooLargeError
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + chunk[:HEAD_BYTES])[:HEAD_BYTES]
        self._digest.update(chunk)
        with self._translate_disk_errors():
            if self._disk is None and self.size > MEMORY_BYTES:
                self._disk = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
                self._disk.write(self._memory.getbuffer())
                self._memory.close()
            self._file.write(chunk)

    def seal(self) -> None:
        """
        Flush the file after its last bytes.

        :raises DownloadError: The disk is full.
        """
        with self._translate_disk_errors():
            self._file.flush()

    @property
    def _file(self) -> BinaryIO:
        return self._memory if self._disk is None else self._disk

    @contextmanager
    def _translate_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python looks for a temporary folder once. On a full disk or in a read-only container, it finds none.
            folder = tempfile.tempdir or os.environ.get("TMPDIR") or "temporary folder"
            raise DownloadError(
                f"The download of {self._name} could not be buffered in the worker's {folder} "
                f"({error.strerror or type(error).__name__}). Free space there, point TMPDIR to a larger disk, or lower the "
                "concurrency."
            ) from None

    def body(self) -> bytes | BinaryIO:
        """Return the whole file in a form that boto3 takes: bytes if it is in memory, otherwise a file at position 0."""
        # A BytesIO returns its own bytes, not a copy.
        return self._memory.getvalue() if self._disk is None else self.file()

    def file(self) -> BinaryIO:
        """Return the whole file as a file object at position 0."""
        self._file.seek(0)
        return self._file

    def decoded(self, *, is_deflate: bool = False) -> Spool:
        """
        Return the file with one layer of compression removed; itself if it has none.

        :param is_deflate: Whether it is labeled as deflate, which can't be recognized by its bytes as gzip can.
        :raises TooLargeError: It unpacks to more than ``max_bytes``.
        :raises DownloadError: It can't be decompressed, or the disk is full.
        """
        is_gzip = self.head.startswith(_GZIP)
        if not is_gzip and not is_deflate:
            return self
        plain = Spool(self._name, self._max_bytes)
        try:
            for chunk in _unpacked(self._chunks(), _GZIP_WINDOW if is_gzip else _deflate_window(self.head)):
                plain.write(chunk)
            plain.seal()
        except zlib.error:
            plain.close()
            if not is_gzip:
                # It was labeled as compressed, but is not.
                return self
            raise DownloadError(
                f"The download of {self._name} is compressed and can't be decompressed."
            ) from None
        except BaseException:
            plain.close()
            raise
        self.close()
        return plain

    def _chunks(self) -> Iterator[bytes]:
        file = self.file()
        while chunk := file.read(_READ_BYTES):
            yield chunk


def _deflate_window(head: bytes) -> int:
    """Return zlib's window bits for deflate: with the header that the standard requires, or raw, as some servers send it."""
    has_header = head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def _unpacked(chunks: Iterator[bytes], window: int) -> Iterator[bytes]:
    """Unpack in pieces of bounded size: a few bytes may expand to gigabytes."""
    unpacker = zlib.decompressobj(window)
    for chunk in chunks:
        while chunk:
            if unpacker.eof:
                # Gzip may have several members; anything else that follows is not part of it.
                if window != _GZIP_WINDOW or not chunk.startswith(_GZIP[: len(chunk)]):
                    return
                unpacker = zlib.decompressobj(window)
            yield unpacker.decompress(chunk, _READ_BYTES)
            chunk = unpacker.unused_data or unpacker.unconsumed_tail
    yield unpacker.flush()
    if not unpacker.eof:
        raise zlib.error("cut off")
