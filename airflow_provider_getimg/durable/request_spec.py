# SPDX-License-Identifier: Apache-2.0
"""A request as the user wrote it: validated without S3, recognized by the next try, and prepared for sending."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import ImageRequest, VideoRequest
from airflow_provider_getimg.durable import reference_images
from airflow_provider_getimg.durable.ledger import fingerprint
from airflow_provider_getimg.s3.labels import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_s3 import S3Client

RequestT = TypeVar("RequestT", ImageRequest, VideoRequest)

#: The fields of an image request (:class:`~airflow_provider_getimg.api.requests.ImageRequest`).
FIELDS = tuple(ImageRequest.model_fields)


def check_fields(request: Mapping[str, Any]) -> None:
    """
    Check that all field names in a user's image request are known, including ``labels``.

    :raises InvalidInputError: A name is unknown.
    """
    known = (*FIELDS, LABELS)
    for name in request:
        if name not in known:
            raise InvalidInputError(f"{quote(name)} is not a known field. Known fields: {', '.join(known)}.")


class RequestSpec(Generic[RequestT]):
    """
    One request.

    :param fields: ``model``, ``prompt`` and so on; None means not given.
    :param kind: The type of request.
    :raises InvalidInputError: The API is known to refuse a value.
    """

    def __init__(self, kind: type[RequestT], fields: Mapping[str, Any]) -> None:
        self._kind: type[RequestT] = kind
        self._images = reference_images.as_written(fields.get("images"))
        self._fields = {name: value for name, value in fields.items() if name != "images"}
        #: The validated request, with placeholders for images in S3.
        self.checked: RequestT = kind.checked(
            **self._fields, images=reference_images.without_s3(self._images)
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest that is the same in each try, even if references in S3 or signatures have changed."""
        return fingerprint({**self.checked.to_json(), "images": reference_images.identity(self._images)})

    def resolve(self, s3_client: Callable[[], S3Client]) -> RequestT:
        """
        Return the request to send: objects in S3 are read now.

        :param s3_client: Returns a client; called only if there is something to read.
        :raises InvalidInputError: A reference is missing, too large or not an image.
        :raises UnavailableError: S3 could not be read.
        """
        images = reference_images.resolve(self._images, s3_client)
        return self._kind.checked(**self._fields, images=images)

    def redacted(self) -> dict[str, Any]:
        """Return the request for display: references without signatures or the bytes of data URLs."""
        redacted = self.checked.to_json()
        if self._images:
            redacted["images"] = reference_images.redacted(self._images)
        return redacted
