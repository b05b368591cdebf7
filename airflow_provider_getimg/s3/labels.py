# SPDX-License-Identifier: Apache-2.0
"""Labels: users' own identifiers for their images, from a database, a file or another task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from numbers import Integral
from typing import TYPE_CHECKING
from uuid import UUID

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.s3.keys import PLACEHOLDERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.api.types import Generation

LABELS = "labels"
#: A row's placeholders besides its labels and PLACEHOLDERS: all are known before the request is sent.
ROW_PLACEHOLDERS = (*(name for name in ImageRequest.model_fields if name != "images"), "row")

_RESERVED = frozenset({*ImageRequest.model_fields, *PLACEHOLDERS, *ROW_PLACEHOLDERS})
# A larger integer has more digits than JSON parsers accept.
_NUMBER_LIMIT = 1e300
_INTEGER_LIMIT = 2**63


def checked_labels(labels: object) -> dict[str, str | int | float]:
    """
    Return labels as plain JSON: None becomes ``""``; dates, UUIDs, decimal fractions and long integers become strings.

    :raises InvalidInputError: They are not a dict, or one of them is invalid.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise InvalidInputError(
            f"labels must be a dict of your own names, such as {{'sku': 'A-17'}}, got {quote(labels)}."
        )
    return dict(_checked(labels))


def labels_of(generation: Generation) -> dict[str, str | int | float]:
    """Return the labels in a generation's XCom. The generation is paid for, so invalid labels are left out."""
    request = (generation.model_extra or {}).get("request")
    labels = request.get(LABELS) if isinstance(request, Mapping) else None
    if not isinstance(labels, Mapping):
        return {}
    return {
        name: value
        for name, value in labels.items()
        if name not in _RESERVED and isinstance(value, str | int | float)
    }


def _checked(labels: Mapping[object, object]) -> Iterator[tuple[str, str | int | float]]:
    for name, value in labels.items():
        if not isinstance(name, str) or not name.isprintable():
            raise InvalidInputError(f"The name of a label must be a printable string, got {quote(name)}.")
        if name.startswith("__"):
            # Airflow's serialization reserves such names.
            raise InvalidInputError(f"The name of a label must not begin with '__', got {quote(name)}.")
        if name in _RESERVED:
            raise InvalidInputError(
                f"labels must not contain {quote(name)}, which is a built-in placeholder."
            )
        plain = _plain(value)
        if plain is None:
            raise InvalidInputError(
                f"labels[{quote(name)}] must be a string, a finite number, a date, a time, a UUID or None, got {quote(value)}."
            )
        yield name, plain


def _plain(value: object) -> str | int | float | None:
    """Return a value as plain JSON; None if a label can't have it."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = str.__str__(value)
        # Neither PostgreSQL nor Airflow's own messages accept NUL or lone surrogates.
        return None if "\x00" in text or text.encode(errors="replace").decode() != text else text
    # True is a stray flag rather than a name for an image.
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return _plain_integer(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _plain_decimal(value)
    if isinstance(value, UUID):
        return str(value)
    # A date that does not equal itself is pandas' NaT.
    if isinstance(value, date | time) and value == value:
        return value.isoformat()
    return None


def _plain_decimal(value: Decimal) -> str | int | None:
    """Return a whole number as an integer, so that a format such as ``{size:03}`` fits it, and a fraction as a string."""
    if not value.is_finite() or abs(value) >= _NUMBER_LIMIT:
        return None
    return _plain_integer(int(value)) if value.as_tuple().exponent == 0 else str(value)


def _plain_integer(number: int) -> str | int | None:
    """Return an integer unchanged if it fits in Airflow's 64 bits, and a longer one as a string."""
    if abs(number) < _INTEGER_LIMIT:
        return number
    return str(number) if abs(number) < _NUMBER_LIMIT else None
