# SPDX-License-Identifier: Apache-2.0
"""A downloaded file on its way to S3: in memory while it is small, then on disk, and verified as a whole."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

from airflow_provider_getimg.api.errors import DownloadError
from airflow_provider_getimg.api.media import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

#: Up to this many bytes, a file is kept in memory.
MEMORY_BYTES = 8 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_GZIP = b"\x1f\x8b\x08"
_TAIL_BYTES = 64


class TooLargeError(Exception):
    """There is more than the limit allows."""


class Spool:
    """
    The bytes of one file. Use it as a context manager: leaving it frees memory and disk.

    :param name: How the file is called in messages.
    :param max_bytes: The largest size to accept.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._closed_content: bytes | None = None
        #: Bytes written so far, and the first and the last of them.
        self.size = 0
        self.head = b""
        self.tail = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what it takes. Idempotent."""
        # Closing writes what a full disk did not take.
        with suppress(OSError):
            self._file.close()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """
        Add bytes.

        :raises TooLargeError: There are more than ``max_bytes``.
        :raises DownloadError: The disk is full.
        """
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise TooLargeError
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + chunk[:HEAD_BYTES])[:HEAD_BYTES]
        self.tail = chunk[-_TAIL_BYTES:] if len(chunk) >= _TAIL_BYTES else (self.tail + chunk)[-_TAIL_BYTES:]
        self._digest.update(chunk)
        with self._faults_of_the_disk():
            self._file.write(chunk)

    def seal(self) -> None:
        """
        Say that all is written.

        :raises DownloadError: The disk is full.
        """
        with self._faults_of_the_disk():
            self._file.flush()

    @contextmanager
    def _faults_of_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DownloadError(
                f"The download of {self._name} could not be buffered in the worker's {tempfile.gettempdir()} "
                f"({error.strerror}). Free space there, point TMPDIR to a larger disk, or lower the concurrency."
            ) from None

    def body(self) -> bytes | BinaryIO:
        """Return all of it, as boto3 takes it: bytes where it is in memory, otherwise a file at its beginning."""
        if self.size > MEMORY_BYTES:
            self._file.seek(0)
            return cast("BinaryIO", self._file)
        if self._closed_content is None:
            self._file.seek(0)
            self._closed_content = self._file.read()
            # Once is enough.
            self._file.close()
        return self._closed_content

    def decoded(self) -> Spool:
        """
        Return the file without the compression (gzip) that it came in; itself where it came in none.

        :raises TooLargeError: It unpacks to more than ``max_bytes``.
        :raises DownloadError: It can't be unpacked, or the disk is full.
        """
        if not self.head.startswith(_GZIP):
            return self
        plain = Spool(self._name, self._max_bytes)
        try:
            for chunk in _unpacked(self._chunks()):
                plain.write(chunk)
            plain.seal()
        except zlib.error:
            plain.close()
            raise DownloadError(
                f"The download of {self._name} came compressed and can't be unpacked."
            ) from None
        except BaseException:
            plain.close()
            raise
        self.close()
        return plain

    def _chunks(self) -> Iterator[bytes]:
        self._file.seek(0)
        while chunk := self._file.read(_READ_BYTES):
            yield chunk


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip in pieces of bounded size: a few bytes may stand for gigabytes."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    for chunk in chunks:
        while chunk and not unpacker.eof:
            yield unpacker.decompress(chunk, _READ_BYTES)
            chunk = unpacker.unconsumed_tail
    yield unpacker.flush()
    if not unpacker.eof:
        raise zlib.error("cut off")
