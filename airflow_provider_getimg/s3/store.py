# SPDX-License-Identifier: Apache-2.0
"""
The provider's requests to S3: look at an object, write it with one request, list keys.

S3-compatible stores support less than Amazon S3. If one refuses something optional (a checksum header, a condition on a
write), it is left out from then on, and its purpose is served by other means.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os.path
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.api.errors import ObjectStoreError
from airflow_provider_getimg.s3.connection import plain_client, s3_client
from airflow_provider_getimg.s3.object_options import (
    GENERATION_ID,
    INDEX,
    REQUEST_SHA256,
    SHA256,
    ObjectOptions,
    ascii_value,
)
from airflow_provider_getimg.s3.store_errors import TRANSIENT_CODES, is_transient, status_of, store_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.api.errors import GetimgError
    from airflow_provider_getimg.s3.plan import TransferItem

_READ_BYTES = 1024 * 1024
# From this many keys on, one listing is cheaper than a HEAD for each.
_LIST_FROM = 16


class OccupiedKeyError(Exception):
    """A write that must not replace an object found one at its key (S3's 412)."""


@dataclass(frozen=True)
class StoredObject:
    """
    An object as S3 describes it.

    :param sha256: Of its content, in hex, if S3 or the object's metadata has it.
    :param readable: Whether it may be read. If not, it comes from a listing and has no metadata here.
    """

    size: int
    etag: str
    metadata: Mapping[str, str]
    sha256: str | None
    mime_type: str | None = None
    readable: bool = True

    def is_copy_of(self, item: TransferItem) -> bool:
        """Return whether an earlier try saved this very file here."""
        found = (self.metadata.get(GENERATION_ID), self.metadata.get(INDEX))
        if found != (ascii_value(item.generation_id), str(item.index)):
            return False
        # If the API repeated an id, the object may be another request's.
        request_sha256 = self.metadata.get(REQUEST_SHA256)
        return None in {request_sha256, item.request_sha256} or request_sha256 == item.request_sha256


class S3Store:
    """
    S3 with the user's options. Safe to use from several threads.

    :param hook: The hook of the AWS connection.
    :param extra_args: Options as ``put_object`` takes them; copied, never changed.
    :param dag_id: The DAG whose images are written; None if there is none.
    :raises InvalidInputError: ``extra_args`` is not a dict, or has an option that can't be set.
    :raises ConnectionConfigError: The connection can't be used.
    """

    def __init__(self, hook: S3Hook, extra_args: object, dag_id: str | None = None) -> None:
        self._hook = hook
        self.client = s3_client(hook)
        self._options = ObjectOptions(self.client, extra_args, dag_id)
        # What the store or the connection requires of a write; a refusal changes it for all later writes.
        self._sends_checksums = (
            getattr(self.client.meta.config, "request_checksum_calculation", "when_supported")
            != "when_required"
        )
        self._asks_for_checksums = self._sends_checksums
        self._sends_conditions = True

    @cached_property
    def _plain_client(self) -> S3Client:
        """The client for stores that refuse checksums."""
        return plain_client(self._hook, self.client)

    def put(
        self,
        item: TransferItem,
        body: bytes | BinaryIO,
        sha256: str,
        mime_type: str,
        *,
        replaces: bool,
    ) -> str:
        """
        Write an object, whole or not at all, and return its ETag.

        :param sha256: Of the body, in hex; S3 verifies it.
        :param mime_type: The body's content type.
        :param replaces: Whether to replace an object at the key; otherwise S3 itself refuses, atomically if it supports
            conditional writes.
        :raises OccupiedKeyError: An object already exists and must not be replaced.
        :raises ObjectStoreError: S3 refused the request, or the request failed.
        """
        args = self._options.of_image(item, mime_type, sha256)
        return self._put(item.bucket, item.key, body, sha256, args, replaces=replaces)

    def put_text(
        self,
        bucket: str,
        key: str,
        content: bytes,
        content_type: str,
        *,
        metadata: Mapping[str, str] | None = None,
        replaces: bool = True,
    ) -> None:
        """
        Write a small object of the provider's own like an image, with the user's options except those that describe files.

        :param replaces: Whether to replace an object at the key; otherwise S3 itself refuses, atomically if it supports
            conditional writes.
        :raises OccupiedKeyError: An object already exists and must not be replaced.
        :raises ObjectStoreError: S3 refused the request, or the request failed.
        """
        args = self._options.of_text(content_type, metadata or {})
        self._put(bucket, key, content, hashlib.sha256(content).hexdigest(), args, replaces=replaces)

    def read(self, bucket: str, key: str) -> bytes | None:
        """
        Return the content of a small object; None if there is none.

        :raises ObjectStoreError: S3 refused the request, or the request failed.
        """
        try:
            response = self.client.get_object(**self._options.of_call("get_object"), Bucket=bucket, Key=key)
            return response["Body"].read()
        except (ClientError, BotoCoreError) as error:
            # By code, not status: a missing bucket is a 404 too.
            if isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise self._error("read", bucket, f"s3://{bucket}/{key}", error) from None

    def folders(self, bucket: str, prefix: str) -> list[str]:
        """
        Return the names of the folders in a folder.

        :param prefix: The folder's prefix, with a trailing slash.
        :raises ObjectStoreError: S3 refused the request, or the request failed.
        """
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, Delimiter="/"
        )
        try:
            return [
                found["Prefix"].removeprefix(prefix).rstrip("/")
                for page in pages
                for found in page.get("CommonPrefixes", [])
            ]
        except (ClientError, BotoCoreError) as error:
            raise self._error("list", bucket, f"s3://{bucket}/{prefix}", error) from None

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object of the provider's own, if that is permitted."""
        with suppress(ClientError, BotoCoreError):
            self.client.delete_object(Bucket=bucket, Key=key)

    def _put(
        self,
        bucket: str,
        key: str,
        body: bytes | BinaryIO,
        sha256: str,
        args: Mapping[str, Any],
        *,
        replaces: bool,
    ) -> str:
        uri = f"s3://{bucket}/{key}"
        is_repeated = False
        while True:
            # Read once: another thread may change them between the check and the write.
            conditions, checksums = self._sends_conditions, self._sends_checksums
            if not replaces and not conditions and self.head(bucket, key, list_fallback=True) is not None:
                raise OccupiedKeyError
            condition = {"IfNoneMatch": "*"} if conditions and not replaces else {}
            try:
                own = {**args, **condition, "Bucket": bucket, "Key": key}
                if checksums:
                    if not any(name.startswith("Checksum") for name in args):
                        own["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
                    response = self.client.put_object(**own, Body=_rewound(body))
                else:
                    own.pop("ChecksumAlgorithm", None)
                    own["ContentMD5"] = _md5(body)
                    response = self._plain_client.put_object(**own, Body=_rewound(body))
                etag = str(response.get("ETag") or "").strip('"')
            except ClientError as error:
                if status_of(error) == 412 and condition:
                    if not self._is_free(bucket, key):
                        raise OccupiedKeyError from None
                    if not is_repeated:
                        # Another writer's object may have come and gone.
                        is_repeated = True
                        continue
                if not self._disables_unsupported(error, bool(condition), checksums):
                    raise self._error("store", bucket, uri, error) from None
            except BotoCoreError as error:
                raise self._error("store", bucket, uri, error) from None
            else:
                # Some stores return no ETag; neither does a proxy that returns 200 for everything.
                if not etag and self._is_free(bucket, key):
                    raise ObjectStoreError(f"S3 accepted {uri}, but the object is not there.")
                return etag

    def _disables_unsupported(self, error: ClientError, condition: bool, checksums: bool) -> bool:
        """Return whether a store refused an optional part of a write, which is then left out from now on."""
        status = status_of(error)
        said = error.response.get("Error", {})
        # Not the whole error: it repeats the key, which may contain any of these words.
        text = " ".join(str(said.get(name)) for name in ("Code", "Message", "ArgumentName", "Header")).lower()
        # A body corrupted in transit is not a refused header, though the message names the checksum.
        if status not in (400, 411, 412, 501) or said.get("Code") in TRANSIENT_CODES:
            return False
        names_checksum = any(word in text for word in ("checksum", "trailer", "chunked", "content-sha256"))
        names_condition = any(word in text for word in ("if-none-match", "ifnonematch", "condition"))
        if condition and (status == 412 or names_condition):
            self._sends_conditions = False
        elif checksums and (status == 411 or names_checksum):
            self._sends_checksums = False
        # A header is not implemented, but the error doesn't name it.
        elif condition and status == 501:
            self._sends_conditions = False
        elif checksums and status == 501:
            self._sends_checksums = False
        else:
            return False
        return True

    def _is_free(self, bucket: str, key: str) -> bool:
        """Return whether S3 itself says that nothing is at a key."""
        try:
            self.client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            return status_of(error) == 404
        except BotoCoreError:
            return False
        return False

    def head(self, bucket: str, key: str, *, list_fallback: bool = False) -> StoredObject | None:
        """
        Return the object at a key; None if there is none, or if reading it is not permitted.

        :param list_fallback: Whether to list the key if reading is not permitted.
        :raises ObjectStoreError: The request to S3 failed.
        """
        uri = f"s3://{bucket}/{key}"
        mode: dict[str, Any] = {"ChecksumMode": "ENABLED"} if self._asks_for_checksums else {}
        try:
            response = self.client.head_object(
                **self._options.of_call("head_object"), Bucket=bucket, Key=key, **mode
            )
        except ClientError as error:
            # S3 also returns 403 for a missing object to callers that may not list the bucket.
            if status_of(error) == 403 and list_fallback:
                return self._listed(bucket, key)
            if status_of(error) in (403, 404):
                return None
            # The response to a HEAD has no body that would explain the refusal.
            if mode and status_of(error) in (400, 501):
                self._asks_for_checksums = False
                return self.head(bucket, key, list_fallback=list_fallback)
            raise self._error("read the metadata of", bucket, uri, error) from None
        except BotoCoreError as error:
            raise self._error("read the metadata of", bucket, uri, error) from None
        metadata = {name.lower(): value for name, value in response.get("Metadata", {}).items()}
        return StoredObject(
            response.get("ContentLength", 0),
            response.get("ETag", "").strip('"'),
            metadata,
            _whole_checksum(response.get("ChecksumSHA256", "")) or _hex_digest(metadata.get(SHA256, "")),
            response.get("ContentType"),
        )

    def _listed(self, bucket: str, key: str) -> StoredObject | None:
        try:
            # Keys are listed in byte order: among those that start with this one, it comes first.
            response = self.client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except (ClientError, BotoCoreError) as error:
            # A store that does not permit listing, or can't, is asked in vain. A busy one may know an object to keep.
            if isinstance(error, ClientError) and not is_transient(error):
                return None
            raise self._error("list", bucket, f"s3://{bucket}/{key}", error) from None
        for entry in response.get("Contents", []):
            if entry["Key"] == key:
                return StoredObject(
                    entry.get("Size", 0), entry.get("ETag", "").strip('"'), {}, None, readable=False
                )
        return None

    def _error(self, action: str, bucket: str, uri: str, error: ClientError | BotoCoreError) -> GetimgError:
        return store_error(self._hook.aws_conn_id, action, bucket, uri, error)

    def sha256_of(self, item: TransferItem) -> str:
        """
        Read the object at the item's key and return its SHA-256 in hex.

        :raises ObjectStoreError: The request to S3 failed.
        """
        digest = hashlib.sha256()
        try:
            response = self.client.get_object(
                **self._options.of_call("get_object"), Bucket=item.bucket, Key=item.key
            )
            for chunk in response["Body"].iter_chunks(_READ_BYTES):
                digest.update(chunk)
        except (ClientError, BotoCoreError) as error:
            raise self._error("read", item.bucket, item.uri, error) from None
        return digest.hexdigest()

    def existing_keys(self, keys: Sequence[str | None], bucket: str) -> frozenset[str] | None:
        """
        Return which of many keys exist, listed with one request per thousand objects.

        Returns None, so that any key may exist, if there are few keys, one is unknown, listing is denied, or far more objects
        share the prefix.

        :param keys: None stands for an unknown key.
        """
        if len(keys) < _LIST_FROM or None in keys:
            return None
        wanted = frozenset(keys)
        found: set[str] = set()
        # S3's prefixes are plain characters too, not path segments.
        prefix = os.path.commonprefix([key for key in keys if key])  # noqa: RUF071
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            for number, page in enumerate(pages):
                if number > len(keys) // _LIST_FROM:
                    return None
                found |= {entry["Key"] for entry in page.get("Contents", [])} & wanted
        except (ClientError, BotoCoreError):
            # Most likely there is no permission to list, which saving does not need.
            return None
        return frozenset(found)


def _rewound(body: bytes | BinaryIO) -> bytes | BinaryIO:
    if not isinstance(body, bytes):
        body.seek(0)
    return body


def _md5(body: bytes | BinaryIO) -> str:
    """Return the value of ``Content-MD5``, for stores that support no newer checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes):
        digest.update(body)
    else:
        body.seek(0)
        while chunk := body.read(_READ_BYTES):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


def _whole_checksum(checksum: str) -> str | None:
    """Return the SHA-256 of an object's content in hex, from the checksum that S3 gives; None if it is of another kind."""
    # A multipart upload has a checksum of checksums, which ends in the number of parts.
    try:
        digest = base64.b64decode(checksum, validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else None


def _hex_digest(text: str) -> str | None:
    return text if re.fullmatch("[0-9a-f]{64}", text) else None
