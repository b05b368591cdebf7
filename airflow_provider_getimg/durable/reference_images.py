# SPDX-License-Identifier: Apache-2.0
"""Reference images as users give them become what the API takes: HTTPS URLs and data URLs."""

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client


_SCHEMES = ("https://", "s3://", "data:")
# The parameters of presigned URLs: of S3 and what speaks like it, CloudFront, Google Cloud Storage, Azure's SAS, and the API.
_SIGNATURE = re.compile(
    r"(x-amz-[^=]*|x-goog-[^=]*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id"
    r"|s[eprtvi]|srt|ss|spr|sig|sk[a-z]+|exp|token)=",
    re.IGNORECASE,
)


def as_written(images: object) -> list[dict[str, Any]] | None:
    """
    Return the ``images`` of a request with plain URLs as dicts, each with a role.

    :param images: A list of ``{url, role}`` or of URLs; None for none.
    :raises InvalidInputError: Not a list, or an entry that is neither.
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
    """Return the images with a stand-in for each object in S3, to check all else before S3 is asked."""
    return images and [{**image, "url": "https://in.s3"} if _is_in_s3(image) else image for image in images]


def identity(images: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """
    Return what makes the references the same from try to try: the URLs as written, without signatures.

    Neither an object that was replaced in S3 nor a URL that was signed again is another request: a retry must not pay for
    it.
    """
    return images and [{**image, "url": _unsigned(str(image.get("url")))} for image in images]


def _unsigned(url: str) -> str:
    if not url.startswith("https://"):
        return url
    address, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not _SIGNATURE.match(part)]
    return f"{address}?{'&'.join(kept)}" if kept else address


def redacted(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images for people: URLs without their queries, and of data URLs the type and a digest."""
    return [{**image, "url": _redacted(str(image.get("url")))} for image in images]


def _redacted(url: str) -> str:
    if url.startswith("data:"):
        return f"{url.partition(',')[0]},(sha256 {hashlib.sha256(url.encode()).hexdigest()})"
    return without_query(url)


def resolve(
    images: list[dict[str, Any]] | None, s3_client: Callable[[], S3Client]
) -> list[dict[str, Any]] | None:
    """
    Return the images with ``s3://`` objects as data URLs.

    :param s3_client: Called for the client that reads ``s3://bucket/key`` images, if there are any.
    :raises InvalidInputError: An object that is missing, too large or no image.
    :raises UnavailableError: S3 could not be asked.
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
    bucket, _, key = url.removeprefix("s3://").partition("/")
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
            f"{name} must be a PNG, JPEG or WebP image, and by its first bytes it is none."
        )
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
