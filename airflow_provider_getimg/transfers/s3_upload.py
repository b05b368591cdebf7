# SPDX-License-Identifier: Apache-2.0
"""
Write a stream into one S3 object, with memory for one part of it.

The object appears when :meth:`S3Upload.complete` is called, whole, or not at all. S3 compares each
request with the SHA-256 that was computed on the way and refuses what differs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_getimg.api.errors import InvalidInputError, ObjectStoreError

if TYPE_CHECKING:
    from types import TracebackType

    from mypy_boto3_s3 import S3Client

#: The smallest part that S3 takes, and so the memory that a file needs, whatever its size.
PART_BYTES = 5 * 1024 * 1024
MAX_PARTS = 10_000


class S3Upload:
    """
    One object that is being written. Leaving the context without :meth:`complete` leaves nothing behind.

    :param client: A boto3 S3 client.
    :param bucket: The bucket.
    :param key: The key.
    :param args: Options as boto3's ``put_object`` takes them, such as ``ContentType`` and ``Metadata``.
    :param size: The object's size in bytes, if it is known.
    """

    def __init__(
        self, client: S3Client, bucket: str, key: str, args: Mapping[str, Any], size: int | None = None
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._args = args
        self._part_bytes = max(PART_BYTES, -(-(size or 0) // MAX_PARTS))
        self._buffer = bytearray()
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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._upload_id is not None:
            # The first error is the one to report.
            with suppress(ClientError, BotoCoreError):
                self._call("abort_multipart_upload", UploadId=self._upload_id)
        self._buffer.clear()

    def write(self, chunk: bytes) -> None:
        """
        Add bytes; a full part goes to S3.

        :raises ObjectStoreError: S3 refused it.
        """
        self._digest.update(chunk)
        self.size += len(chunk)
        self._buffer += chunk
        # Only once there is more: the last part is sent by complete(), so that a small file is one request.
        while len(self._buffer) > self._part_bytes:
            part = bytes(memoryview(self._buffer)[: self._part_bytes])
            del self._buffer[: self._part_bytes]
            self._send_part(part)

    def complete(self) -> str:
        """
        Make the object appear, and return its ETag.

        :raises ObjectStoreError: S3 refused it. Nothing is left behind.
        """
        try:
            if self._upload_id is None:
                answer = self._call("put_object", Body=bytes(self._buffer), **self._checksum(self._buffer))
            else:
                self._send_part(bytes(self._buffer))
                answer = self._call(
                    "complete_multipart_upload",
                    UploadId=self._upload_id,
                    MultipartUpload={"Parts": self._parts},
                )
                self._upload_id = None
        except (ClientError, BotoCoreError) as error:
            raise store_error("store", self._bucket, self._key, error) from None
        return str(answer["ETag"]).strip('"')

    def _send_part(self, part: bytes) -> None:
        try:
            if self._upload_id is None:
                algorithm = {} if self._has_own_checksum else {"ChecksumAlgorithm": "SHA256"}
                self._upload_id = self._call("create_multipart_upload", **algorithm)["UploadId"]
            number = len(self._parts) + 1
            answer = self._call(
                "upload_part", UploadId=self._upload_id, PartNumber=number, Body=part, **self._checksum(part)
            )
        except (ClientError, BotoCoreError) as error:
            raise store_error("store", self._bucket, self._key, error) from None
        checksums = {
            name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"
        }
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})

    def _checksum(self, body: bytes | bytearray) -> dict[str, str]:
        if self._has_own_checksum:
            return {}
        return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(body).digest()).decode()}

    def _call(self, operation: str, **own: Any) -> Any:
        """Call S3 with this object's options, each where the operation knows it."""
        members = members_of(self._client, operation)
        args = {name: value for name, value in self._args.items() if name in members}
        return getattr(self._client, operation)(Bucket=self._bucket, Key=self._key, **args, **own)


def members_of(client: S3Client, operation: str) -> frozenset[str]:
    """Return the names of the parameters that an S3 operation takes."""
    name = "".join(word.capitalize() for word in operation.split("_"))
    shape = client.meta.service_model.operation_model(name).input_shape
    return frozenset(shape.members if shape is not None else ())


def checked_extra_args(client: S3Client, extra_args: object) -> dict[str, Any]:
    """
    Return a copy of the user's ``extra_args``.

    :raises InvalidInputError: No dict, or a name that ``put_object`` doesn't know.
    """
    if extra_args is None:
        return {}
    if not isinstance(extra_args, Mapping):
        raise InvalidInputError(
            f"extra_args is a {type(extra_args).__name__}: a dict of S3 options is allowed, such as "
            "{'StorageClass': 'STANDARD_IA'}."
        )
    own = {"Bucket", "Key", "Body", "ContentLength", "ContentMD5", "UploadId"}
    allowed = members_of(client, "put_object") - own
    unknown = sorted(str(name) for name in extra_args if name not in allowed)
    if unknown:
        raise InvalidInputError(
            f"extra_args has {', '.join(unknown)}, which can't be set: options of S3's PutObject are allowed, "
            "such as ACL, Metadata, ServerSideEncryption, SSEKMSKeyId, StorageClass and Tagging."
        )
    return dict(extra_args)


def store_error(action: str, bucket: str, key: str, error: ClientError | BotoCoreError) -> ObjectStoreError:
    """Return what S3 said as one sentence."""
    target = f"s3://{bucket}/{key}"
    if not isinstance(error, ClientError):
        return ObjectStoreError(f"S3 could not be asked to {action} {target}: {str(error).rstrip('.')}.")
    said = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = said.get("Code") or "no code"
    if code == "NoSuchBucket":
        return ObjectStoreError(
            f"S3 has no bucket {bucket!r} to {action} {target} in.", status=status, code=code
        )
    reason = (said.get("Message") or "no reason given").rstrip(".")
    return ObjectStoreError(
        f"S3 refused to {action} {target} ({status} {code}): {reason}.", status=status, code=code
    )
