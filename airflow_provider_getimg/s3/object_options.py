# SPDX-License-Identifier: Apache-2.0
"""An object's options: the user's ``extra_args``, the content type, and metadata that records the object's origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore.validate import ParamValidator

from airflow_provider_getimg.api.errors import InvalidInputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.s3.plan import TransferItem

#: S3's limit for user metadata, names and values together, in bytes; and the provider's maximum share of it.
METADATA_MAX_BYTES = 2048
_OWN_METADATA_BYTES = 1024
# The provider's values are cut to this length: the API's own names may be long, and longer once encoded.
_METADATA_VALUE_BYTES = 192

GENERATION_ID = "getimg-generation-id"
INDEX = "getimg-index"
MODEL = "getimg-model"
SHA256 = "getimg-sha256"
REQUEST_SHA256 = "getimg-request-sha256"
#: A digest of the DAG that saved the object.
DAG = "getimg-dag"
#: Marks a manifest, with a digest of the task that wrote it.
MANIFEST = "getimg-manifest"

# Set by the write itself: a user's value would break it.
_OWN_ARGS = frozenset({"Bucket", "Key", "Body", "ContentLength", "ContentMD5", "IfNoneMatch", "IfMatch"})
# Options that describe the user's files, not the manifest beside them.
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


class ObjectOptions:
    """
    The user's options for writing and reading objects.

    :param client: Knows which options S3 supports.
    :param extra_args: Options as ``put_object`` takes them; copied, never changed.
    :param dag_id: The DAG whose images are written; None if there is none.
    :raises InvalidInputError: ``extra_args`` is not a dict, or has an option that can't be set.
    """

    def __init__(self, client: S3Client, extra_args: object, dag_id: str | None) -> None:
        self._client = client
        self._dag = None if dag_id is None else dag_digest(dag_id)
        self._members: dict[str, frozenset[str]] = {}
        self._extra_args = self._checked(extra_args)

    def of_image(self, item: TransferItem, mime_type: str, sha256: str) -> dict[str, Any]:
        """Return the options for one object: its content type, its origin, and the user's options, which take precedence."""
        ends = item.media.deletes_at
        ours = {
            GENERATION_ID: item.generation_id,
            INDEX: str(item.index),
            MODEL: item.model,
            "getimg-deletes-at": ends.isoformat() if ends is not None else None,
            "getimg-prompt-sha256": item.prompt_sha256,
            REQUEST_SHA256: item.request_sha256,
            SHA256: sha256,
            DAG: self._dag,
        }
        metadata = {name: ascii_value(value) for name, value in ours.items() if value}
        args = {"ContentType": mime_type, **self._extra_args}
        args["Metadata"] = {**metadata, **self._extra_args.get("Metadata", {})}
        return args

    def of_text(self, content_type: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Return the options for an object of the provider's own: the user's, except those that describe their files."""
        args = {name: value for name, value in self._extra_args.items() if name not in _DESCRIPTION}
        return {**args, "ContentType": content_type, "Metadata": dict(metadata)}

    def of_call(self, operation: str) -> dict[str, Any]:
        """Return the user's options that an S3 operation accepts, such as an encryption key."""
        known = self._members_of(operation)
        return {name: value for name, value in self._extra_args.items() if name in known}

    def _members_of(self, operation: str) -> frozenset[str]:
        """Return the names of an S3 operation's parameters."""
        if operation not in self._members:
            name = "".join(word.capitalize() for word in operation.split("_"))
            shape = self._client.meta.service_model.operation_model(name).input_shape
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
        # A checksum's value fits one object at most; its algorithm may be chosen.
        allowed = {
            name
            for name in self._members_of("put_object") - _OWN_ARGS
            if not name.startswith("Checksum") or name == "ChecksumAlgorithm"
        }
        unknown = sorted(str(name) for name in set(extra_args) - allowed)
        if unknown:
            raise InvalidInputError(
                "extra_args must contain options of S3's PutObject that may be set, such as ACL, Metadata, "
                f"ServerSideEncryption, SSEKMSKeyId, StorageClass and Tagging, got {', '.join(unknown)}."
            )
        metadata = extra_args.get("Metadata", {})
        if not isinstance(metadata, Mapping) or not all(
            isinstance(text, str) and text.isascii() for item in metadata.items() for text in item
        ):
            raise InvalidInputError(
                f"extra_args['Metadata'] must be a dict of ASCII strings, got {metadata!r}."
            )
        size = sum(len(name) + len(value) for name, value in metadata.items())
        if size > METADATA_MAX_BYTES - _OWN_METADATA_BYTES:
            raise InvalidInputError(
                f"extra_args['Metadata'] must have at most {METADATA_MAX_BYTES - _OWN_METADATA_BYTES} bytes, because S3 "
                f"allows {METADATA_MAX_BYTES} in total and the provider adds its own, got {size}."
            )
        self._check_types(extra_args)
        return dict(extra_args)

    def _check_types(self, extra_args: Mapping[str, Any]) -> None:
        """Have botocore validate the values before anything is downloaded, as it will when they are sent."""
        shape = self._client.meta.service_model.operation_model("PutObject").input_shape
        if shape is None:
            return
        report = ParamValidator().validate({"Bucket": "bucket", "Key": "key", **extra_args}, shape)
        if report.has_errors():
            raise InvalidInputError(
                f"extra_args can't be sent: {' '.join(report.generate_report().split()).rstrip('.')}."
            )


def ascii_value(text: str) -> str:
    """Return a text as a header can hold it: percent-encoded where necessary, and cut to length."""
    return quote(text, safe=" :+,/")[:_METADATA_VALUE_BYTES]


def dag_digest(dag_id: str) -> str:
    """Return a digest of a DAG's id, which distinguishes its objects from another DAG's."""
    return _digest(dag_id)


def task_digest(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return a digest of a task instance's ids, which distinguishes its objects from another task instance's."""
    return _digest(dag_id, run_id, task_id, str(map_index))


def _digest(*names: str) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()
