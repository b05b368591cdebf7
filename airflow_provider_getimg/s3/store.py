# SPDX-License-Identifier: Apache-2.0
"""
What the provider asks of S3: the user's options, a look at an object, one write, and errors as sentences.

Stores that speak S3 know less of it than Amazon's. What one refuses that isn't needed (a checksum header, a condition on a
write) is left out from then on, and what it was good for is done by other means.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os.path
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowException
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.validate import ParamValidator

from airflow_provider_getimg.api.errors import (
    ConnectionConfigError,
    GetimgError,
    InvalidInputError,
    ObjectStoreError,
    StoreRefusedError,
)
from airflow_provider_getimg.api.signed_urls import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.s3.plan import TransferItem

#: S3's limit for user metadata, names and values together, in bytes; and so much of it is ours at most.
METADATA_MAX_BYTES = 2048
_OWN_METADATA_BYTES = 1024
# A value of ours is cut here: names of the API's own may be long, and longer once they are encoded.
_METADATA_VALUE_BYTES = 192

GENERATION_ID = "getimg-generation-id"
INDEX = "getimg-index"
MODEL = "getimg-model"
SHA256 = "getimg-sha256"
REQUEST_SHA256 = "getimg-request-sha256"

_READ_BYTES = 1024 * 1024
# Those of an answer, by their beginnings.
_READ_HEADERS = ("content-", "etag", "x-amz-checksum-", "x-amz-meta-", "x-amz-request-id", "x-amz-id-2")
# From so many keys on, one listing is less work than a look at each.
_LIST_FROM = 16
# Set by the write itself: a user's value would break it.
_OWN_ARGS = frozenset({"Bucket", "Key", "Body", "ContentLength", "ContentMD5", "IfNoneMatch", "IfMatch"})
# What describes the user's files, and not the manifest beside them.
_DESCRIPTION = frozenset(
    {
        "ContentType",
        "Metadata",
        "ContentDisposition",
        "ContentEncoding",
        "ContentLanguage",
        "CacheControl",
        "Expires",
    }
)

# Refusals (4xx) that another request may not meet: a clock, a token, too much at once, a body that broke on the way.
_PASSING = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteBody",
        "OperationAborted",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "SlowDown",
        "TokenRefreshRequired",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUSES = frozenset({408, 409, 412, 425, 429})


class OccupiedKeyError(Exception):
    """An object is at the key of a write that must not replace one (S3's 412)."""


@dataclass(frozen=True)
class StoredObject:
    """
    An object as S3 describes it.

    :param sha256: Of its content, in hex, where S3 or the object's metadata tell.
    :param readable: Whether it may be read. Where not, a listing found it: it has no metadata here.
    """

    size: int
    etag: str
    metadata: Mapping[str, str]
    sha256: str | None
    mime_type: str | None = None
    readable: bool = True

    def is_copy_of(self, copy: TransferItem) -> bool:
        """Tell whether an earlier try saved this very file here."""
        told = (self.metadata.get(GENERATION_ID), self.metadata.get(INDEX))
        return told == (_ascii(copy.generation_id), str(copy.index))


class S3Store:
    """
    S3 with the user's options. Safe to use from several threads.

    :param hook: Of the AWS connection.
    :param extra_args: Options as ``put_object`` takes them; copied, never changed.
    :raises InvalidInputError: ``extra_args`` is no dict, or holds what can't be set.
    :raises ConnectionConfigError: The connection can't be used.
    """

    def __init__(self, hook: S3Hook, extra_args: object) -> None:
        self._hook = hook
        with _faults_of_the_connection(hook.aws_conn_id):
            self.client: S3Client = hook.get_conn()
        self.client.meta.events.register_first(
            "before-sign.s3", _sign_checksum, unique_id="getimg-sign-checksum"
        )
        _read_leniently(self.client)
        self._members: dict[str, frozenset[str]] = {}
        self._extra_args = self._checked(extra_args)
        # What the store, or the connection, wants of a write; a refusal changes it for all that follow.
        self._sends_checksums = (
            getattr(self.client.meta.config, "request_checksum_calculation", "when_supported")
            != "when_required"
        )
        self._asks_for_checksums = self._sends_checksums
        self._sends_conditions = True

    @cached_property
    def _plain_client(self) -> S3Client:
        """A client that adds no checksum of its own to a request."""
        if getattr(self.client.meta.config, "request_checksum_calculation", None) == "when_required":
            return self.client
        config = Config(request_checksum_calculation="when_required")
        client: S3Client = _reconfigured(self._hook, config).get_conn()
        _read_leniently(client)
        return client

    def object_args(self, copy: TransferItem, mime_type: str, sha256: str) -> dict[str, Any]:
        """Return the options for one object: its content type, where it comes from, and the user's, which win."""
        ends = copy.media.deletes_at
        ours = {
            GENERATION_ID: copy.generation_id,
            INDEX: str(copy.index),
            MODEL: copy.model,
            "getimg-deletes-at": ends.isoformat() if ends is not None else None,
            "getimg-prompt-sha256": copy.prompt_sha256,
            REQUEST_SHA256: copy.request_sha256,
            SHA256: sha256,
        }
        metadata = {name: _ascii(value) for name, value in ours.items() if value}
        args = {"ContentType": mime_type, **self._extra_args}
        args["Metadata"] = {**metadata, **self._extra_args.get("Metadata", {})}
        return args

    def put(
        self,
        copy: TransferItem,
        body: bytes | BinaryIO,
        sha256: str,
        args: Mapping[str, Any],
        *,
        replaces: bool,
    ) -> str:
        """
        Write an object, whole or not at all, and return its ETag.

        :param sha256: Of the body, in hex: S3 compares.
        :param replaces: Whether an object at the key is replaced; otherwise S3 itself refuses, atomically.
        :raises OccupiedKeyError: An object is there already, and it must not be replaced.
        :raises ObjectStoreError: S3 refused it, or could not be asked.
        """
        return self._put(copy.bucket, copy.key, body, sha256, args, replaces=replaces)

    def put_text(self, bucket: str, key: str, content: bytes, content_type: str) -> None:
        """
        Write a small object of our own over what is there: as a picture is written, with the user's options but for what
        describes their files.

        :raises ObjectStoreError: S3 refused it, or could not be asked.
        """  # noqa: D205
        args = {name: value for name, value in self._extra_args.items() if name not in _DESCRIPTION}
        args["ContentType"] = content_type
        self._put(bucket, key, content, hashlib.sha256(content).hexdigest(), args, replaces=True)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object of our own, if that is permitted."""
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
        while True:
            # Read once: another thread may change them between the look and the write.
            conditions, checksums = self._sends_conditions, self._sends_checksums
            if not replaces and not conditions and self.head(bucket, key) is not None:
                raise OccupiedKeyError
            condition = {"IfNoneMatch": "*"} if conditions and not replaces else {}
            try:
                own = {**args, **condition, "Bucket": bucket, "Key": key}
                if checksums:
                    if not any(name.startswith("Checksum") for name in args):
                        own["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
                    answer = self.client.put_object(**own, Body=_rewound(body))
                else:
                    own.pop("ChecksumAlgorithm", None)
                    own["ContentMD5"] = _md5(body)
                    answer = self._plain_client.put_object(**own, Body=_rewound(body))
                etag = str(answer.get("ETag") or "").strip('"')
            except ClientError as error:
                if _status(error) == 412 and condition and not self._is_free(bucket, key):
                    raise OccupiedKeyError from None
                if not self._does_without(error, bool(condition), checksums):
                    raise self.error("store", bucket, uri, error) from None
            except BotoCoreError as error:
                raise self.error("store", bucket, uri, error) from None
            else:
                # Some stores give none; nor does a proxy that answers everything with 200.
                if not etag and self._is_free(bucket, key):
                    raise ObjectStoreError(f"S3 accepted {uri}, but the object is not there.")
                return etag

    def _does_without(self, error: ClientError, condition: bool, checksums: bool) -> bool:
        """Decide whether a store refused what a write can do without: it is left out from now on."""
        status = _status(error)
        said = error.response.get("Error", {})
        # Not all that it says: it repeats the key, which may hold any of these words.
        text = " ".join(str(said.get(name)) for name in ("Code", "Message", "ArgumentName", "Header")).lower()
        # A body that broke on the way is not a header that is refused, though its message names the checksum.
        if status not in (400, 411, 412, 501) or said.get("Code") in _PASSING:
            return False
        names_checksum = any(word in text for word in ("checksum", "trailer", "chunked", "content-sha256"))
        names_condition = any(word in text for word in ("if-none-match", "ifnonematch", "condition"))
        if condition and (status == 412 or names_condition):
            self._sends_conditions = False
        elif checksums and (status == 411 or names_checksum):
            self._sends_checksums = False
        # A header that is not implemented, and not named.
        elif condition and status == 501:
            self._sends_conditions = False
        elif checksums and status == 501:
            self._sends_checksums = False
        else:
            return False
        return True

    def _is_free(self, bucket: str, key: str) -> bool:
        """Tell whether S3 itself says that nothing is at a key."""
        try:
            self.client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            return _status(error) == 404
        except BotoCoreError:
            return False
        return False

    def call(self, operation: str, args: Mapping[str, Any], **own: Any) -> Any:
        """Call an S3 operation with those of ``args`` that it knows, and all of ``own``."""
        known = {name: value for name, value in args.items() if name in self.members_of(operation)}
        return getattr(self.client, operation)(**known, **own)

    def head(self, bucket: str, key: str, *, list_fallback: bool = False) -> StoredObject | None:
        """
        Return the object at a key; None if there is none, or if looking is not permitted.

        :param list_fallback: Whether to list it where it may not be read.
        :raises ObjectStoreError: S3 could not be asked.
        """
        uri = f"s3://{bucket}/{key}"
        mode = {"ChecksumMode": "ENABLED"} if self._asks_for_checksums else {}
        try:
            answer = self.call("head_object", self._extra_args, Bucket=bucket, Key=key, **mode)
        except ClientError as error:
            # 403: S3's answer for a missing object, too, to who may not list the bucket.
            if _status(error) == 403 and list_fallback:
                return self._listed(bucket, key)
            if _status(error) in (403, 404):
                return None
            # The answer to a HEAD has no body: why it is refused is not said.
            if mode and _status(error) in (400, 501):
                self._asks_for_checksums = False
                return self.head(bucket, key, list_fallback=list_fallback)
            raise self.error("look at", bucket, uri, error) from None
        except BotoCoreError as error:
            raise self.error("look at", bucket, uri, error) from None
        metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
        return StoredObject(
            answer.get("ContentLength", 0),
            answer.get("ETag", "").strip('"'),
            metadata,
            _whole_checksum(answer.get("ChecksumSHA256", "")) or _hex_digest(metadata.get(SHA256, "")),
            answer.get("ContentType"),
        )

    def _listed(self, bucket: str, key: str) -> StoredObject | None:
        try:
            # Keys come in the order of their bytes: of those that begin like it, it is the first.
            answer = self.client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except (ClientError, BotoCoreError):
            return None
        for entry in answer.get("Contents", []):
            if entry["Key"] == key:
                return StoredObject(
                    entry.get("Size", 0), entry.get("ETag", "").strip('"'), {}, None, readable=False
                )
        return None

    def sha256_of(self, copy: TransferItem) -> str:
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
            raise self.error("read", copy.bucket, copy.uri, error) from None
        return digest.hexdigest()

    def keys_among(self, keys: Sequence[str | None], bucket: str) -> frozenset[str] | None:
        """
        Return which of many keys exist, with a call for a thousand of them.

        :param keys: None among them for one that is not known.
        :return: None if listing is denied, or far more objects share the prefix: the caller then checks each key.
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

    def error(self, action: str, bucket: str, uri: str, error: ClientError | BotoCoreError) -> GetimgError:
        """Return what S3 said as one sentence."""
        if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            found = " ".join(str(error).split()).rstrip(".")
            return ConnectionConfigError(
                f"The AWS connection {self._hook.aws_conn_id!r} gives no credentials for S3, and nor does the worker's "
                f"environment: {found}."
            )
        if not isinstance(error, ClientError):
            # A bucket's name that can't be one is found by botocore itself, and will not get better.
            kind = InvalidInputError if isinstance(error, ParamValidationError) else ObjectStoreError
            reason = " ".join(str(error).split()).rstrip(".")
            return kind(f"S3 could not be asked to {action} {uri}: {reason}.")
        said, status = error.response.get("Error", {}), _status(error)
        code = said.get("Code") or "no code"
        if code == "NoSuchBucket" or (status == 404 and action == "store"):
            return StoreRefusedError(
                f"S3 could not {action} {uri}: there is no bucket {bucket!r}.", status=status, code=code
            )
        message = " ".join((said.get("Message") or "no reason given").split()).rstrip(".")
        where = f"({status})" if code == str(status) else f"({status} {code})"
        return (ObjectStoreError if _passes(error) else StoreRefusedError)(
            f"S3 refused to {action} {uri} {where}: {message}.", status=status, code=code
        )

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
                "extra_args must be a dict of S3 options, such as {'StorageClass': 'STANDARD_IA'}, got "
                f"{type(extra_args).__name__}."
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
                "extra_args must hold options of S3's PutObject that may be set, such as ACL, Metadata, ServerSideEncryption, "
                f"SSEKMSKeyId, StorageClass and Tagging, got {', '.join(unknown)}."
            )
        metadata = extra_args.get("Metadata", {})
        if not isinstance(metadata, Mapping) or not all(
            isinstance(text, str) and text.isascii() for item in metadata.items() for text in item
        ):
            raise InvalidInputError(
                f"extra_args['Metadata'] must be a dict of ASCII names and texts, got {metadata!r}."
            )
        size = sum(len(name) + len(value) for name, value in metadata.items())
        if size > METADATA_MAX_BYTES - _OWN_METADATA_BYTES:
            raise InvalidInputError(
                f"extra_args['Metadata'] must have at most {METADATA_MAX_BYTES - _OWN_METADATA_BYTES} bytes, so that it fits "
                f"into S3's {METADATA_MAX_BYTES} with what is added to it, got {size}."
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
    with _faults_of_the_connection(aws_conn_id):
        own = hook.conn_config.botocore_config
    if connections <= (own or Config()).max_pool_connections:  # type: ignore[attr-defined]
        return hook
    return _reconfigured(hook, Config(max_pool_connections=connections))


def _reconfigured(hook: S3Hook, config: Config) -> S3Hook:
    """Return a hook with more settings, on top of the connection's own, such as the addressing style."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    own = hook.conn_config.botocore_config
    return S3Hook(aws_conn_id=hook.aws_conn_id, config=own.merge(config) if own is not None else config)


def _read_leniently(client: S3Client) -> None:
    """Keep botocore from headers that nothing here reads: a date that is none would be an error of the whole call."""
    for operation in ("PutObject", "HeadObject", "GetObject"):
        client.meta.events.register(
            f"before-parse.s3.{operation}", _keep_what_is_read, unique_id=f"getimg-headers-of-{operation}"
        )


def _keep_what_is_read(response_dict: dict[str, Any], **_: Any) -> None:
    headers = response_dict["headers"]
    for name in list(headers) if response_dict["status_code"] < 300 else ():
        if not name.lower().startswith(_READ_HEADERS):
            del headers[name]


@contextmanager
def _faults_of_the_connection(aws_conn_id: str | None) -> Iterator[None]:
    """Say in one sentence what is wrong with an AWS connection, whoever finds it."""
    try:
        yield
    except (
        BotoCoreError,
        ClientError,
        AirflowException,
        AttributeError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        # A role is assumed with a request, which may fail this time alone.
        passes = isinstance(error, ConnectionError | HTTPClientError) or (
            isinstance(error, ClientError) and _passes(error)
        )
        kind = ObjectStoreError if passes else ConnectionConfigError
        raise kind(f"The AWS connection {aws_conn_id!r} can't be used: {reason(error)}.") from None


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


def _rewound(body: bytes | BinaryIO) -> bytes | BinaryIO:
    if not isinstance(body, bytes):
        body.seek(0)
    return body


def _md5(body: bytes | BinaryIO) -> str:
    """Return what ``Content-MD5`` holds: for stores that know no newer checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes):
        digest.update(body)
    else:
        body.seek(0)
        while chunk := body.read(_READ_BYTES):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


def _whole_checksum(checksum: str) -> str | None:
    """Return the SHA-256 of an object's content in hex, from what S3 says of it; None if it says something else."""
    # A checksum of checksums, as a multipart upload gets, ends in the number of parts.
    try:
        digest = base64.b64decode(checksum, validate=True)
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else None


def _hex_digest(text: str) -> str | None:
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _ascii(text: str) -> str:
    """Write a text so that a header can hold it: percent-encoded where it is not plain."""
    return quote(text, safe=" :+,/")[:_METADATA_VALUE_BYTES]


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _passes(error: ClientError) -> bool:
    """Tell whether another request may not meet this refusal."""
    status, code = _status(error), error.response.get("Error", {}).get("Code") or ""
    if code in _PASSING or "throttl" in code.lower() or status in _PASSING_STATUSES:
        return True
    return (status >= 500 and status != 501) or not status
