# SPDX-License-Identifier: Apache-2.0
"""The faults that the S3 fault proxy injects, and the requests that it records."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3.client import S3Client

KINDS = (
    "status",
    "rewrite",
    "corrupt",
    "reset_mid_upload",
    "reset_mid_response",
    "slow",
    "lost_response",
    "hang",
)
#: S3's error codes and their statuses; a status without a code gets the first code that has it.
STATUS_OF_CODE = {
    "InvalidRequest": 400,
    "InvalidArgument": 400,
    "BadDigest": 400,
    "RequestTimeout": 400,
    "AccessDenied": 403,
    "SignatureDoesNotMatch": 403,
    "NoSuchKey": 404,
    "NoSuchBucket": 404,
    "NoSuchUpload": 404,
    "ConditionalRequestConflict": 409,
    "MissingContentLength": 411,
    "PreconditionFailed": 412,
    "InternalError": 500,
    "NotImplemented": 501,
    "SlowDown": 503,
    "ServiceUnavailable": 503,
}
RECORDED = ("content-", "if-", "x-amz-")
# Parameters of both versions of signed URLs.
SECRET = ("x-amz-security-token", "x-amz-signature", "x-amz-credential", "signature", "awsaccesskeyid")


@dataclass(frozen=True)
class S3Fault:
    """A fault for the next requests that match.

    :param kind: ``status``: an S3 error, without a request to the server. ``rewrite``: the server's response is passed on
        with other headers. ``reset_mid_upload``: the connection is reset in the middle of the request's body, for
        the server too. ``reset_mid_response``: the server has done its work, and the connection is reset in
        the middle of its response. ``lost_response``: the connection is closed before the first byte of it.
        ``corrupt``: the first byte of the body is changed. ``slow``: the exchange takes ``seconds`` longer. ``hang``: the
        request is accepted, but neither passed on nor responded to; after ``seconds``, the connection is closed.
    :param method: Only requests with this HTTP method.
    :param operation: Only requests for this S3 operation, such as ``PutObject`` or ``UploadPart``.
    :param key_contains: Only requests whose key contains this text.
    :param header: Only requests that carry this header, or this ``header: value``.
    :param status: The status that ``status`` returns; by default that of the code, or 503.
    :param code: The S3 error code; by default one that fits the status.
    :param message: The S3 error message.
    :param elements: More elements of the error's XML, such as ``{"Header": "If-None-Match"}``.
    :param is_empty: Whether the error has no body.
    :param response_headers: For ``rewrite``: the headers' new values; None removes a header.
    :param seconds: For ``slow`` (default 2) and ``hang`` (default 3600).
    :param skip: How many matching requests pass before the first fault.
    :param times: How many requests get the fault.
    """

    kind: str
    method: str | None = None
    operation: str | None = None
    key_contains: str = ""
    header: str = ""
    status: int | None = None
    code: str | None = None
    message: str | None = None
    elements: Mapping[str, str] = field(default_factory=dict)
    is_empty: bool = False
    response_headers: Mapping[str, str | None] = field(default_factory=dict)
    seconds: float | None = None
    skip: int = 0
    times: int = 1

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Self:
        """Return the fault that a dict describes.

        :raises ValueError: The kind or a field is unknown.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(description) - set(names)):
            raise ValueError(f"A fault has no field {', '.join(unknown)}; its fields are {', '.join(names)}.")
        if description.get("kind") not in KINDS:
            raise ValueError(f"'kind' must be one of {', '.join(KINDS)}, got {description.get('kind')!r}.")
        return cls(**description)

    @property
    def response(self) -> tuple[int, str]:
        """The status and the error code of a ``status`` fault."""
        status = self.status or STATUS_OF_CODE.get(self.code or "", 503)
        fitting = (code for code, usual in STATUS_OF_CODE.items() if usual == status)
        return status, self.code or next(fitting, "InternalError")

    def matches(self, request: ProxiedRequest) -> bool:
        """Whether the fault is for this request."""
        return (
            self.method in (None, request.method)
            and self.operation in (None, request.operation)
            and self.key_contains in request.key
            and self._is_carried_by(request)
        )

    def _is_carried_by(self, request: ProxiedRequest) -> bool:
        name, _, value = self.header.partition(": ")
        carried = request.headers.get(name.lower())
        return not name or (carried is not None and value in ("", carried))


@dataclass
class ProxiedRequest:
    """One request and its outcome.

    ``query`` and ``headers`` omit credentials; the names of headers are in lower case, and only those that describe
    the object are kept (``content-…``, ``if-…``, ``x-amz-…``). ``status`` is what the client got,
    None for no response; ``upstream_status`` is the server's, None if the request was not passed on.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    operation: str
    bucket: str
    key: str
    status: int | None = None
    upstream_status: int | None = None
    fault: str | None = None
    body_bytes: int = 0

    @classmethod
    def of(cls, method: str, target: str, headers: Mapping[str, str]) -> Self:
        """Return the record of a request that has just arrived.

        :param target: Its path and query, as received.
        """
        path, _, query_string = target.partition("?")
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        query = dict(parse_qsl(query_string, keep_blank_values=True))
        query = {name: value for name, value in query.items() if name.lower() not in SECRET}
        kept = {name.lower(): value for name, value in headers.items()}
        kept = {
            name: value for name, value in kept.items() if name.startswith(RECORDED) and name not in SECRET
        }
        is_copy = "x-amz-copy-source" in kept
        operation = operation_of(method, key, bucket, query, is_copy=is_copy)
        return cls(method, path, query, kept, operation, bucket, key)


def operation_of(method: str, key: str, bucket: str, query: dict[str, str], *, is_copy: bool = False) -> str:
    """Return the name of the S3 operation, as boto3 spells it, for those that matter here."""
    if not bucket:
        return "ListBuckets"
    if "uploadId" in query or "uploads" in query:
        parts = {
            "PUT": "UploadPart",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts" if key else "ListMultipartUploads",
            "POST": "CompleteMultipartUpload" if "uploadId" in query else "CreateMultipartUpload",
        }
        return parts.get(method, method)
    if key:
        return "CopyObject" if is_copy else f"{method.capitalize()}Object"
    if method == "POST":
        return "DeleteObjects"
    names = {"GET": "ListObjects", "PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket"}
    return "ListObjectsV2" if "list-type" in query else names.get(method, method)


def open_uploads(client: S3Client, bucket: str) -> list[str]:
    """Return the key of each multipart upload that is neither completed nor aborted."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
    return [upload["Key"] for page in pages for upload in page.get("Uploads", [])]
