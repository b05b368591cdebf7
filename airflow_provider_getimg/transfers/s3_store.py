# SPDX-License-Identifier: Apache-2.0
"""What the transfer asks of S3: the user's options, a look at an object, and errors as sentences."""

from __future__ import annotations

import base64
import hashlib
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.validate import ParamValidator

from airflow_provider_getimg.api.errors import GetimgError, InvalidInputError, ObjectStoreError

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.transfers.plan import FileCopy

#: S3's limit for user metadata, names and values together, in bytes.
METADATA_MAX_BYTES = 2048

GENERATION_ID = "getimg-generation-id"
INDEX = "getimg-index"
MODEL = "getimg-model"
SHA256 = "getimg-sha256"
REQUEST_SHA256 = "getimg-request-sha256"

_READ_BYTES = 1024 * 1024
# From so many keys on, one listing is less work than a look at each.
_LIST_FROM = 16
# Set by the upload itself: a user's value would break it.
_OWN_ARGS = frozenset({"Bucket", "Key", "Body", "ContentLength", "ContentMD5", "IfNoneMatch", "IfMatch"})


@dataclass(frozen=True)
class StoredObject:
    """
    An object as S3 describes it.

    :param sha256: Of its content, in hex, where S3 or the object's metadata tell.
    :param readable: Whether it may be read. Where not, a listing told of it: it has no metadata here.
    """

    size: int
    etag: str
    metadata: Mapping[str, str]
    sha256: str | None
    mime_type: str | None = None
    readable: bool = True

    def is_copy_of(self, copy: FileCopy) -> bool:
        """Tell whether an earlier try saved this very file here."""
        told = (self.metadata.get(GENERATION_ID), self.metadata.get(INDEX))
        return told == (_ascii(copy.generation_id), str(copy.index))


class S3Store:
    """
    S3 with the user's options.

    :param client: A boto3 S3 client, shared by threads.
    :param extra_args: Options as ``put_object`` takes them; copied, never changed.
    :raises InvalidInputError: ``extra_args`` is no dict, or holds what can't be set.
    """

    def __init__(self, client: S3Client, extra_args: object) -> None:
        self.client = client
        client.meta.events.register_first("before-sign.s3", _sign_checksum, unique_id="getimg-sign-checksum")
        self._members: dict[str, frozenset[str]] = {}
        self._extra_args = self._checked(extra_args)

    def object_args(self, copy: FileCopy) -> dict[str, Any]:
        """
        Return the options for one object: its content type, where it comes from, and the user's, which win.

        :raises InvalidInputError: The metadata is over S3's 2 KB.
        """
        ours = {
            GENERATION_ID: copy.generation_id,
            INDEX: str(copy.index),
            MODEL: copy.model,
            "getimg-deletes-at": copy.media.deletes_at.isoformat(),
            "getimg-prompt-sha256": copy.prompt_sha256,
            REQUEST_SHA256: copy.request_sha256,
        }
        metadata = {name: _ascii(value) for name, value in ours.items() if value}
        args = {"ContentType": copy.media.mime_type, **self._extra_args}
        args["Metadata"] = {**metadata, **self._extra_args.get("Metadata", {})}
        # A digest is added once it is known.
        size = sum(len(name) + len(str(value).encode()) for name, value in args["Metadata"].items())
        if size + len(SHA256) + 64 > METADATA_MAX_BYTES:
            raise InvalidInputError(
                f"The metadata of {copy.uri} is {size} bytes with what is added to it: S3 allows "
                f"{METADATA_MAX_BYTES} in all. Shorten extra_args['Metadata']."
            )
        return args

    def call(self, operation: str, args: Mapping[str, Any], **own: Any) -> Any:
        """Call an S3 operation with those of ``args`` that it knows, and all of ``own``."""
        known = {name: value for name, value in args.items() if name in self.members_of(operation)}
        return getattr(self.client, operation)(**known, **own)

    def look(self, copy: FileCopy, *, by_listing: bool = False) -> StoredObject | None:
        """
        Return the object at the copy's key; None if there is none, or if looking is not permitted.

        :param by_listing: Whether to list it where it may not be read.
        :raises ObjectStoreError: S3 could not be asked.
        """
        try:
            answer = self.call(
                "head_object", self._extra_args, Bucket=copy.bucket, Key=copy.key, ChecksumMode="ENABLED"
            )
        except ClientError as error:
            # 403: S3's answer for a missing object, too, to who may not list the bucket.
            if _status(error) == 403 and by_listing:
                return self._listed(copy)
            if _status(error) in (403, 404):
                return None
            raise store_error("look at", copy, error) from None
        except BotoCoreError as error:
            raise store_error("look at", copy, error) from None
        metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
        checksum = answer.get("ChecksumSHA256", "")
        # A checksum of checksums, as a multipart upload gets, ends in the number of parts.
        whole = base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None
        return StoredObject(
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            metadata,
            whole or metadata.get(SHA256),
            answer.get("ContentType"),
        )

    def _listed(self, copy: FileCopy) -> StoredObject | None:
        try:
            # Keys come in the order of their bytes: of those that begin like it, it is the first.
            answer = self.client.list_objects_v2(Bucket=copy.bucket, Prefix=copy.key, MaxKeys=1)
        except (ClientError, BotoCoreError):
            return None
        for entry in answer.get("Contents", []):
            if entry["Key"] == copy.key:
                return StoredObject(entry["Size"], entry["ETag"].strip('"'), {}, None, readable=False)
        return None

    def sha256_of(self, copy: FileCopy) -> str:
        """
        Read the object at the copy's key and return its SHA-256 in hex.

        :raises ObjectStoreError: S3 could not be asked.
        """
        digest = hashlib.sha256()
        try:
            answer = self.call("get_object", self._extra_args, Bucket=copy.bucket, Key=copy.key)
            for chunk in answer["Body"].iter_chunks(_READ_BYTES):
                digest.update(chunk)
        except (ClientError, BotoCoreError) as error:
            raise store_error("read", copy, error) from None
        return digest.hexdigest()

    def put(self, bucket: str, key: str, content: bytes, content_type: str) -> None:
        """
        Write a small object of our own, with the user's options but for what describes their files.

        :raises botocore.exceptions.ClientError: S3 refused it.
        """
        described = ("ContentType", "Metadata", "ContentDisposition", "ContentEncoding", "ContentLanguage")
        args = {name: value for name, value in self._extra_args.items() if name not in described}
        self.call("put_object", args, Bucket=bucket, Key=key, Body=content, ContentType=content_type)

    def check_bucket(self, bucket: str) -> None:
        """
        Check that a bucket is there, as far as that may be asked.

        :raises InvalidInputError: It is not.
        """
        try:
            self.client.head_bucket(Bucket=bucket)
        except ClientError as error:
            # 403: it may be permitted to write objects, and not to ask for the bucket.
            if _status(error) == 404:
                raise InvalidInputError(f"There is no bucket {bucket!r}: nothing was asked for.") from None
            if _status(error) not in (400, 403, 301):
                raise object_error("look at", bucket, f"s3://{bucket}", error) from None
        except BotoCoreError as error:
            raise object_error("look at", bucket, f"s3://{bucket}", error) from None

    def keys_among(self, keys: Sequence[str | None], bucket: str) -> frozenset[str] | None:
        """
        Return at which of many keys objects lie, with a call for a thousand of them.

        :param keys: None among them for one that is not known.
        :return: None where it may not be asked, or where far more lies beside them: each is then to be looked at.
        """
        if len(keys) < _LIST_FROM or None in keys:
            return None
        wanted = frozenset(keys)
        found: set[str] = set()
        # S3's prefixes are characters, as these are.
        prefix = os.path.commonprefix([key for key in keys if key])  # noqa: RUF071
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            for number, page in enumerate(pages):
                if number > len(keys) // _LIST_FROM:
                    return None
                found |= {entry["Key"] for entry in page.get("Contents", [])} & wanted
        except (ClientError, BotoCoreError):
            # No permission to list, most likely: that is none of what saving needs.
            return None
        return frozenset(found)

    def abort_uploads(self, bucket: str, key: str) -> int:
        """
        Abort all multipart uploads to a key, and return how many there were.

        :raises botocore.exceptions.ClientError: S3 refused.
        """
        found = [
            upload["UploadId"]
            for page in self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=key
            )
            for upload in page.get("Uploads", [])
            if upload["Key"] == key
        ]
        for upload_id in found:
            self.client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        return len(found)

    def members_of(self, operation: str) -> frozenset[str]:
        """Return the names of the parameters that an S3 operation takes."""
        if operation not in self._members:
            name = "".join(word.capitalize() for word in operation.split("_"))
            shape = self.client.meta.service_model.operation_model(name).input_shape
            self._members[operation] = frozenset(shape.members if shape is not None else ())
        return self._members[operation]

    def _checked(self, extra_args: object) -> dict[str, Any]:
        if extra_args is None:
            return {}
        if not isinstance(extra_args, Mapping):
            raise InvalidInputError(
                f"extra_args is a {type(extra_args).__name__}: a dict of S3 options is allowed, such as "
                "{'StorageClass': 'STANDARD_IA'}."
            )
        # A checksum's value can be that of one object at most; its algorithm may be chosen.
        allowed = {
            name
            for name in self.members_of("put_object") - _OWN_ARGS
            if not name.startswith("Checksum") or name == "ChecksumAlgorithm"
        }
        unknown = sorted(str(name) for name in set(extra_args) - allowed)
        if unknown:
            raise InvalidInputError(
                f"extra_args has {', '.join(unknown)}, which can't be set: options of S3's PutObject are allowed, "
                "such as ACL, Metadata, ServerSideEncryption, SSEKMSKeyId, StorageClass and Tagging."
            )
        metadata = extra_args.get("Metadata", {})
        if not isinstance(metadata, Mapping) or not all(
            isinstance(text, str) and text.isascii() for item in metadata.items() for text in item
        ):
            raise InvalidInputError(
                f"extra_args['Metadata'] is {metadata!r}: a dict of ASCII names and texts is allowed."
            )
        self._check_types(extra_args)
        return dict(extra_args)

    def _check_types(self, extra_args: Mapping[str, Any]) -> None:
        """Let botocore check the values before anything is downloaded, as it will when they are sent."""
        shape = self.client.meta.service_model.operation_model("PutObject").input_shape
        if shape is None:
            return
        report = ParamValidator().validate({"Bucket": "bucket", "Key": "key", **extra_args}, shape)
        if report.has_errors():
            raise InvalidInputError(
                f"extra_args can't be sent: {' '.join(report.generate_report().split()).rstrip('.')}."
            )


def s3_hook(aws_conn_id: str | None, connections: int) -> S3Hook:
    """Return a hook whose client has room for so many requests at once; boto3 keeps 10 connections by default."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=aws_conn_id)
    own = hook.conn_config.botocore_config
    if connections <= (own or Config()).max_pool_connections:  # type: ignore[attr-defined]
        return hook
    # On top of the connection's own settings, such as the addressing style.
    wider = Config(max_pool_connections=connections)
    return S3Hook(aws_conn_id=aws_conn_id, config=own.merge(wider) if own is not None else wider)


def _sign_checksum(request: Any, **_: Any) -> None:
    """
    Sign a body's SHA-256 once.

    Over plain http botocore computes it a second time, to sign the body: a quarter of an upload's CPU time. The header
    ``x-amz-checksum-sha256`` is signed as well, and S3 compares the body with it. A connection that sets
    ``payload_signing_enabled`` is left alone.
    """
    config = request.context.get("client_config")
    options: Any = getattr(config, "s3", None) or {}
    if "x-amz-checksum-sha256" in request.headers and options.get("payload_signing_enabled") is None:
        unsigned = Config(s3=options | {"payload_signing_enabled": False})
        request.context["client_config"] = config.merge(unsigned) if config is not None else unsigned


def _ascii(text: str) -> str:
    """Write a text so that a header can hold it: percent-encoded where it is not plain."""
    return quote(text, safe=" :+,/")


def store_error(action: str, copy: FileCopy, error: ClientError | BotoCoreError) -> GetimgError:
    """Return what S3 said of a file's object as one sentence."""
    return object_error(action, copy.bucket, copy.uri, error)


def object_error(action: str, bucket: str, uri: str, error: ClientError | BotoCoreError) -> GetimgError:
    """Return what S3 said as one sentence."""
    if not isinstance(error, ClientError):
        # A bucket's name that can't be one is found by botocore itself, and will not get better.
        kind = InvalidInputError if isinstance(error, ParamValidationError) else ObjectStoreError
        reason = " ".join(str(error).split()).rstrip(".")
        return kind(f"S3 could not be asked to {action} {uri}: {reason}.")
    said, status = error.response.get("Error", {}), _status(error)
    code = said.get("Code") or "no code"
    if code == "NoSuchBucket":
        return ObjectStoreError(
            f"S3 could not {action} {uri}: there is no bucket {bucket!r}.", status=status, code=code
        )
    reason = (said.get("Message") or "no reason given").rstrip(".")
    return ObjectStoreError(
        f"S3 refused to {action} {uri} ({status} {code}): {reason}.", status=status, code=code
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
