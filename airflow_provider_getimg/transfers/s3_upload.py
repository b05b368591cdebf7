# SPDX-License-Identifier: Apache-2.0
"""
Write a stream into one S3 object, with memory for one part of it.

The object appears when :meth:`S3Upload.complete` is called, whole, or not at all. S3 compares each
request with the SHA-256 that was computed on the way and refuses what differs.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.transfers.s3_store import SHA256, store_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_getimg.transfers.plan import FileCopy
    from airflow_provider_getimg.transfers.s3_store import S3Store
    from airflow_provider_getimg.transfers.unfinished_uploads import UnfinishedUploads

#: The smallest part that S3 takes, and so the memory that a file needs, whatever its size.
PART_BYTES = 5 * 1024 * 1024
MAX_PARTS = 10_000


class OccupiedKeyError(Exception):
    """An object lies at the key of an upload that must not replace one (S3's 412)."""


class S3Upload:
    """
    One object that is being written. Leaving the context without :meth:`complete` leaves nothing behind.

    :param store: S3.
    :param copy: Where to.
    :param args: Options of the object, as ``put_object`` takes them.
    :param replaces: Whether an object at the key is replaced; otherwise S3 itself refuses, atomically.
    :param unfinished: Where a multipart upload is noted while it is open, for the case that the process dies.
    """

    def __init__(
        self,
        store: S3Store,
        copy: FileCopy,
        args: Mapping[str, Any],
        *,
        replaces: bool = True,
        unfinished: UnfinishedUploads | None = None,
    ) -> None:
        self._store = store
        self._copy = copy
        self._args = args
        self._condition = {} if replaces else {"IfNoneMatch": "*"}
        self._unfinished = unfinished
        self._part_bytes = PART_BYTES
        self._held: list[memoryview] = []
        self._held_bytes = 0
        self._digest = hashlib.sha256()
        self._upload_id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._has_own_checksum = any(name.startswith("Checksum") for name in args)
        #: Bytes written so far.
        self.size = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written so far, in hex."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._held.clear()
        if self._upload_id is None:
            return
        # The first error is the one to report; what can't be aborted stays noted.
        try:
            self._call("abort_multipart_upload", UploadId=self._upload_id)
        except (ClientError, BotoCoreError):
            self._doubt()
        else:
            self._forget()

    def expect(self, size: int | None) -> None:
        """Make parts large enough for so many bytes, where the number is known: S3 takes 10,000 of them."""
        self._part_bytes = max(PART_BYTES, -(-(size or 0) // MAX_PARTS))

    def write(self, chunk: bytes) -> None:
        """
        Add bytes; a full part goes to S3.

        :raises ObjectStoreError: S3 refused it.
        """
        self._digest.update(chunk)
        self.size += len(chunk)
        rest = memoryview(chunk)
        while rest:
            # Only once there is more: the last part is sent by complete(), so that a small file is one request.
            if self._held_bytes >= self._part_bytes:
                self._send_part()
            # Parts of one size, however the chunks come: some stores take no others.
            piece = rest[: self._part_bytes - self._held_bytes]
            rest = rest[len(piece) :]
            self._held.append(piece)
            self._held_bytes += len(piece)

    def complete(self) -> str:
        """
        Make the object appear, and return its ETag.

        :raises ObjectStoreError: S3 refused it. Nothing is left behind.
        :raises OccupiedKeyError: An object is there already, and it must not be replaced.
        """
        try:
            if self._upload_id is None:
                return self._put()
            self._send_part()
            return self._complete_parts()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "PreconditionFailed":
                raise OccupiedKeyError from None
            raise store_error("store", self._copy, error) from None
        except BotoCoreError as error:
            raise store_error("store", self._copy, error) from None

    def _put(self) -> str:
        checksum = {} if self._has_own_checksum else _checksum(self._digest.digest())
        metadata = {**self._args.get("Metadata", {}), SHA256: self.sha256}
        answer = self._call_unless_occupied("put_object", Body=self._taken(), Metadata=metadata, **checksum)
        return str(answer["ETag"]).strip('"')

    def _complete_parts(self) -> str:
        answer = self._call_unless_occupied(
            "complete_multipart_upload", UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
        )
        self._upload_id = None
        self._forget()
        return str(answer["ETag"]).strip('"')

    def _taken(self) -> bytes:
        """Return what is held, and hold it no longer."""
        body = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return body

    def _send_part(self) -> None:
        part = self._taken()
        try:
            if self._upload_id is None:
                if self._unfinished is not None:
                    self._unfinished.note(self._copy)
                algorithm = {} if self._has_own_checksum else {"ChecksumAlgorithm": "SHA256"}
                created = self._call("create_multipart_upload", **algorithm)
                self._upload_id = created["UploadId"]
                # Each attempt of botocore's begins an upload; of one whose answer was lost, nobody knows the id.
                if created["ResponseMetadata"].get("RetryAttempts"):
                    self._doubt()
            number = len(self._parts) + 1
            checksum = {} if self._has_own_checksum else _checksum(hashlib.sha256(part).digest())
            answer = self._call(
                "upload_part", UploadId=self._upload_id, PartNumber=number, Body=part, **checksum
            )
        except (ClientError, BotoCoreError) as error:
            raise store_error("store", self._copy, error) from None
        checksums = {
            name: value
            for name, value in answer.items()
            if name.startswith("Checksum") and name != "ChecksumType"
        }
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})

    def _doubt(self) -> None:
        if self._unfinished is not None:
            self._unfinished.doubt(self._copy)

    def _forget(self) -> None:
        if self._unfinished is not None:
            self._unfinished.forget(self._copy)

    def _call_unless_occupied(self, operation: str, **own: Any) -> Any:
        try:
            return self._call(operation, **self._condition, **own)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if not self._condition or code != "NotImplemented":
                raise
            # A store that knows no conditions: the look before the upload has to do.
            return self._call(operation, **own)

    def _call(self, operation: str, **own: Any) -> Any:
        args = {name: value for name, value in self._args.items() if name not in own}
        return self._store.call(operation, args, Bucket=self._copy.bucket, Key=self._copy.key, **own)


def _checksum(digest: bytes) -> dict[str, str]:
    return {"ChecksumSHA256": base64.b64encode(digest).decode()}
