# SPDX-License-Identifier: Apache-2.0
"""Check what a model accepts: the number of references, and the durations."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import MAX_REFERENCE_IMAGES

if TYPE_CHECKING:
    from airflow_provider_getimg.api.requests import ImageRequest, VideoRequest
    from airflow_provider_getimg.api.types import Model


def exceeds_documented_references(request: ImageRequest | VideoRequest) -> bool:
    """Return whether a request exceeds the documented limit; only the catalogue shows if its model accepts that."""
    return len(request.images or ()) > MAX_REFERENCE_IMAGES


def check_references(model: Model, request: ImageRequest | VideoRequest) -> None:
    """
    Check that a model accepts a request's references. The model's stated limits override the documented one.

    :raises InvalidInputError: The model doesn't.
    """
    counts = Counter(image.role for image in request.images or ())
    for role, count in counts.items():
        limit = model.supported_references.get(role)
        if limit is not None and count > limit:
            raise InvalidInputError(
                f"images must contain at most {limit} with the role {quote(role)} for model {quote(model.id)}, got {count}."
            )
    # Roles that the model doesn't limit fall under the documented limit.
    unstated = sum(count for role, count in counts.items() if role not in model.supported_references)
    if unstated and counts.total() > MAX_REFERENCE_IMAGES:
        raise InvalidInputError(
            f"images must contain at most {MAX_REFERENCE_IMAGES} images for model {quote(model.id)}, which has no limit of "
            f"its own, got {counts.total()}."
        )


def check_duration(model: Model, duration: int | None) -> None:
    """
    Check that a model supports a duration in seconds. The catalogue lists durations as numbers such as ``5.0``.

    :raises InvalidInputError: The model doesn't.
    """
    supported = model.supported_durations
    if duration is not None and supported and duration not in supported:
        listed = ", ".join(f"{seconds:g}" for seconds in supported)
        raise InvalidInputError(
            f"duration must be {listed} seconds for model {quote(model.id)}, got {duration}."
        )
