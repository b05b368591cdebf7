# SPDX-License-Identifier: Apache-2.0
"""Converts reference images, as users specify them, to what the API accepts: HTTPS URLs and data URLs."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.media import HEAD_BYTES, type_of
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import REFERENCE_IMAGE, REFERENCE_IMAGE_MAX_BYTES, REQUEST_MAX_BYTES
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client


_SCHEMES = ("https://", "s3://", "data:")
# Query parameters of presigned URLs: S3 and compatible stores, CloudFront, Google Cloud Storage, and the API.
_SIGNATURE = re.compile(
    r"(x-amz-[^=]*|x-goog-[^=]*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|sig|exp|token)=",
    re.IGNORECASE,
)
# Those of Azure (SAS), short names that mean something else in a URL without ``sig``.
_AZURE = re.compile(
    r"(s[eprtvi]|s(ip|rt|s|pr|dd|es|cid)|s[au]oid|sk(oid|tid|[tesv])|s(kdut|duo)id)=", re.IGNORECASE
)


def as_written(images: object) -> list[dict[str, Any]] | None:
    """
    Return the ``images`` of a request with plain URLs converted to dicts, each with a role.

    :param images: A list of ``{url, role}`` or of URLs; None if there are none.
    :raises InvalidInputError: It is not a list, or an entry is neither.
    """
    if images is None:
        return None
    if isinstance(images, str | bytes | Mapping) or not isinstance(images, Sequence):
        raise InvalidInputError(
            f"images must be a list of URLs, or of {{'url': ..., 'role': ...}}, got {quote(images)}."
        )
    for position, image in enumerate(images):
        if not isinstance(image, str | Mapping):
            raise InvalidInputError(
                f"images[{position}] must be a URL, or {{'url': ..., 'role': ...}}, got {quote(image)}."
            )
        url = image if isinstance(image, str) else image.get("url")
        if isinstance(url, str) and not url.startswith(_SCHEMES):
            raise InvalidInputError(
                f"images[{position}] must be an https:// URL, the s3://bucket/key of an object, or a data URL "
                f"(data:image/png;base64,... or the same with jpeg or webp), got {quote(url)}."
            )
    return [
        {"url": image, "role": REFERENCE_IMAGE}
        if isinstance(image, str)
        else {"role": REFERENCE_IMAGE, **image}
        for image in images
    ]


def without_s3(images: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the images with a placeholder for each object in S3, to check the rest before S3 is read."""
    return images and [{**image, "url": "https://in.s3"} if _is_in_s3(image) else image for image in images]


def identity(images: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """
    Return what identifies the references across tries: the URLs as written, without signatures.

    Replacing an object in S3 or re-signing a URL does not make a new request: a retry must not pay for it.
    """
    return images and [{**image, "url": _unsigned(str(image.get("url")))} for image in images]


def _unsigned(url: str) -> str:
    if not url.startswith("https://"):
        return url
    address, _, query = url.partition("?")
    parts = [part for part in query.split("&") if part]
    is_azure = any(part.lower().startswith("sig=") for part in parts)
    kept = [part for part in parts if not (_SIGNATURE.match(part) or (is_azure and _AZURE.match(part)))]
    return f"{address}?{'&'.join(kept)}" if kept else address


def redacted(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images for display: URLs without query strings, and data URLs as type and digest."""
    return [{**image, "url": _redacted(str(image.get("url")))} for image in images]


def _redacted(url: str) -> str:
    if url.startswith("data:"):
        return f"{url.partition(',')[0]},(sha256 {hashlib.sha256(url.encode()).hexdigest()})"
    return without_query(url)


def resolve(
    images: list[dict[str, Any]] | None, s3_client: Callable[[], S3Client]
) -> list[dict[str, Any]] | None:
    """
    Return the images with ``s3://`` objects converted to data URLs.

    :param s3_client: Returns the client that reads ``s3://bucket/key`` images; called only if there are any.
    :raises InvalidInputError: An object is missing, too large or not an image.
    :raises UnavailableError: S3 could not be read.
    """
    if not images or not any(_is_in_s3(image) for image in images):
        return images

    client = s3_client()
    room = REQUEST_MAX_BYTES
    sent = []
    for position, image in enumerate(images):
        if _is_in_s3(image):
            data_url = _read(client, image["url"], position)
            room -= len(data_url)
            if room < 0:
                raise InvalidInputError(
                    f"images[{position}] ({image['url']}) must leave the request within {REQUEST_MAX_BYTES} bytes (25 MiB), which "
                    "is what the API takes for all images together once base64-encoded."
                )
            image = {**image, "url": data_url}
        sent.append(image)
    return sent


def _is_in_s3(image: dict[str, Any]) -> bool:
    return str(image.get("url", "")).startswith("s3://")


def _read(client: S3Client, url: str, position: int) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    from airflow_provider_getimg.s3.store_errors import read_error

    name = f"images[{position}] ({url})"
    bucket, key = bucket_and_key(url)
    if not bucket or not key:
        raise InvalidInputError(
            f"images[{position}] must be the s3://bucket/key of an object, got {quote(url)}."
        )
    try:
        response = client.get_object(Bucket=bucket, Key=key)
        with response["Body"] as body:
            size = response["ContentLength"]
            if size > REFERENCE_IMAGE_MAX_BYTES:
                raise InvalidInputError(
                    f"{name} must be at most {REFERENCE_IMAGE_MAX_BYTES} bytes (10 MiB), got {size}."
                )
            content = body.read()
    except (ClientError, BotoCoreError) as error:
        raise read_error(name, error) from None
    mime_type = type_of(content[:HEAD_BYTES])
    if mime_type not in ("image/png", "image/jpeg", "image/webp"):
        raise InvalidInputError(
            f"{name} must be a PNG, JPEG or WebP image, but its first bytes are of none of these."
        )
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
