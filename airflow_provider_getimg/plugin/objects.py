# SPDX-License-Identifier: Apache-2.0
"""
Objects that the gallery may read: those whose own metadata says that this provider wrote them for exactly that row.

A row comes from XCom, which others may edit. So the gallery first sends a HEAD with the task's connection, and reads the
object only if its metadata names the row's generation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.api.media import HEAD_BYTES
from airflow_provider_getimg.api.signed_urls import reason
from airflow_provider_getimg.s3.connection import s3_client, s3_hook
from airflow_provider_getimg.s3.object_options import (
    DAG,
    GENERATION_ID,
    INDEX,
    MANIFEST,
    ascii_value,
    dag_digest,
    task_digest,
)
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.plugin.airflow_api import Task
    from airflow_provider_getimg.plugin.pictures import Picture

#: The largest image to read for a thumbnail, the largest manifest to read, and the largest part of anything else.
IMAGE_MAX_BYTES = 32 * 1024 * 1024
MANIFEST_MAX_BYTES = 32 * 1024 * 1024
PART_MAX_BYTES = 4 * 1024 * 1024
_MAX_CONNECTIONS = 100

# How long a client is reused: creating one takes longer than a thumbnail, but the connection may change.
_CLIENT_SECONDS = 60.0
# A store may be slow or gone: few threads wait for it, and not for long.
_CONFIG = Config(connect_timeout=3, read_timeout=10, retries={"max_attempts": 1})
# For each connection and bucket, at most one fault is logged in this time.
_LOG_SECONDS = 60.0
_LOG = logging.getLogger(__name__)


class NotReadableError(Exception):
    """There is no such object, it isn't this row's, or it can't be read. The viewer does not learn which."""


class Cache:
    """An LRU cache of what was made from objects. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[object, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> Any:
        """Return the cached value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: object, value: Any, size: int) -> None:
        """Cache a value of ``size`` bytes, unless it exceeds the limit."""
        if size > self._max_bytes:
            return
        with self._lock:
            if key in self._values:
                self._bytes -= self._values.pop(key)[1]
            self._values[key] = (value, size)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._values.popitem(last=False)[1][1]


def picture_check(picture: Picture) -> Callable[[Mapping[str, str]], bool]:
    """Return a check of an object's metadata: is it this picture, saved by this DAG? An edited XCom may name any object."""
    names = (GENERATION_ID, INDEX, DAG)
    expected = [
        ascii_value(picture.generation_id),
        str(picture.file_index),
        dag_digest(picture.task.dag_id),
    ]

    def check(metadata: Mapping[str, str]) -> bool:
        return bool(picture.generation_id) and [metadata.get(name) for name in names] == expected

    return check


def manifest_check(task: Task) -> Callable[[Mapping[str, str]], bool]:
    """Return a check of an object's metadata: is it this task's manifest? Its viewers must not see other tasks'."""
    expected = task_digest(task.dag_id, task.run_id, task.task_id, task.map_index)

    def check(metadata: Mapping[str, str]) -> bool:
        return metadata.get(MANIFEST) == expected

    return check


@dataclass(frozen=True, slots=True)
class Part:
    """
    Some bytes of an object.

    :param first: The offset of the first byte.
    :param size: The size of the whole object.
    :param etag: The whole object's ETag: parts with another ETag don't belong to it.
    """

    content: bytes
    mime_type: str
    first: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Opened:
    client: S3Client
    bucket: str
    key: str
    etag: str
    size: int

    def read(self, first: int = 0, last: int | None = None) -> bytes:
        """Return these bytes of exactly the object that the HEAD found."""
        end = self.size - 1 if last is None else last
        names = {"Bucket": self.bucket, "Key": self.key, "IfMatch": self.etag}
        if (first, end) != (0, self.size - 1):
            names["Range"] = f"bytes={first}-{end}"
        response = self.client.get_object(**names)  # type: ignore[arg-type]
        with response["Body"] as body:
            # A store that ignores the range sends the whole object.
            if "Range" in names and response["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise ValueError("not a part")
            content: bytes = body.read(end - first + 1)
        return content


class Objects:
    """Reads objects with the connections of the tasks that wrote them."""

    def __init__(self) -> None:
        self._clients: dict[str | None, tuple[S3Client, float]] = {}
        self._logged: dict[tuple[str | None, str], float] = {}
        self._lock = threading.Lock()

    def read(
        self,
        uri: str,
        aws_conn_id: str | None,
        allowed: Callable[[Mapping[str, str]], bool],
        max_bytes: int,
        make: Callable[[bytes], Any],
        cache: Cache | None = None,
    ) -> Any:
        """
        Return what ``make`` makes from an object's content, or the cached result for the same content.

        :raises NotReadableError: For any of its reasons.
        """
        with self._open(uri, aws_conn_id, allowed) as opened:
            if opened.size > max_bytes:
                raise NotReadableError
            key = (aws_conn_id, uri, opened.etag)
            if cache is not None and (kept := cache.get(key)) is not None:
                return kept
            made = make(opened.read())
        if cache is not None:
            cache.put(key, made, _size_of(made, opened.size))
        return made

    def read_part(
        self,
        uri: str,
        aws_conn_id: str | None,
        allowed: Callable[[Mapping[str, str]], bool],
        kind_of: Callable[[bytes], str],
        first: int,
        last: int | None,
    ) -> Part:
        """
        Return bytes ``first`` to ``last`` of an object, or the first ``PART_MAX_BYTES`` of them.

        :param kind_of: Returns the content type for an object's first bytes, or raises ValueError.
        :raises NotReadableError: For any of its reasons.
        """
        with self._open(uri, aws_conn_id, allowed) as opened:
            end = opened.size - 1 if last is None else min(last, opened.size - 1)
            end = min(end, first + PART_MAX_BYTES - 1)
            content = opened.read(first, end) if first <= end else b""
            head_size = min(HEAD_BYTES, opened.size)
            is_head = first == 0 and len(content) >= head_size
            mime_type = kind_of(content[:head_size] if is_head else opened.read(0, head_size - 1))
        return Part(content, mime_type, first, opened.size, opened.etag)

    @contextmanager
    def _open(
        self, uri: str, aws_conn_id: str | None, allowed: Callable[[Mapping[str, str]], bool]
    ) -> Iterator[_Opened]:
        bucket, key = bucket_and_key(uri)
        if not uri.startswith("s3://") or not bucket or not key:
            raise NotReadableError
        try:
            client = self._client(aws_conn_id)
            head = client.head_object(Bucket=bucket, Key=key)
            metadata = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
            if not allowed(metadata):
                raise NotReadableError
            yield _Opened(client, bucket, key, head["ETag"], head["ContentLength"])
        except (ClientError, BotoCoreError, GetimgError, ValueError) as error:
            self._log(aws_conn_id, bucket, error)
            raise NotReadableError from None

    def _client(self, aws_conn_id: str | None) -> S3Client:
        with self._lock:
            client, until = self._clients.get(aws_conn_id, (None, 0.0))
            if client is None or until < time.monotonic():
                client = s3_client(s3_hook(aws_conn_id, 8, _CONFIG))
                self._clients[aws_conn_id] = client, time.monotonic() + _CLIENT_SECONDS
            return client

    def _log(self, aws_conn_id: str | None, bucket: str, error: Exception) -> None:
        """Log why objects can't be read, for whoever runs the API server: the viewer only sees that they can't."""
        # An object of the wrong kind is not the server's fault.
        if isinstance(error, ValueError) and not isinstance(error, BotoCoreError):
            return
        now = time.monotonic()
        with self._lock:
            if now < self._logged.get((aws_conn_id, bucket), 0.0):
                return
            if len(self._logged) >= _MAX_CONNECTIONS:
                self._logged.clear()
            self._logged[aws_conn_id, bucket] = now + _LOG_SECONDS
        _LOG.warning(
            "The gallery can't read objects in bucket %r with the AWS connection %r: %s.",
            bucket,
            aws_conn_id,
            reason(error),
        )


def _size_of(made: Any, length: int) -> int:
    content = getattr(made, "content", None)
    # Parsed lines take several times the memory of their text.
    return len(content) if isinstance(content, bytes) else length * 4
