# SPDX-License-Identifier: Apache-2.0
"""Check the operators' parameters, which Jinja may have rendered: one sentence for each invalid value."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote

if TYPE_CHECKING:
    from collections.abc import Sequence


#: S3's size limit for an object that is written in one request.
FILE_MAX_BYTES = 5 * 1024**3


def checked_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """
    Return ``value`` if it is one of ``choices``.

    :raises InvalidInputError: It is not one of them.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise InvalidInputError(f"{name} must be {listed} or {choices[-1]!r}, got {quote(value)}.")
    return str(value)


def checked_flag(name: str, value: object) -> bool:
    """
    Return a boolean; the strings ``true`` and ``false`` are accepted in any case.

    :raises InvalidInputError: The value is neither true nor false.
    """
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise InvalidInputError(f"{name} must be True or False, got {quote(value)}.")
    return text == "true"


def checked_seconds(name: str, value: Any, minimum: float = 0) -> float:
    """
    Return a time in seconds; a string is parsed.

    :raises InvalidInputError: The value is not a number, or less than the minimum.
    """
    seconds = _number(value)
    if not minimum <= seconds < math.inf:
        raise InvalidInputError(
            f"{name} must be a number of seconds, {minimum:g} or more, got {quote(value)}."
        )
    return seconds


def checked_amount(name: str, value: object) -> Decimal:
    """
    Return an amount in USD, 0 or more, as a decimal; a string is parsed.

    :raises InvalidInputError: The value is not such a number.
    """
    text = str(value).strip()
    try:
        amount = Decimal("NaN" if isinstance(value, bool) or "_" in text else text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise InvalidInputError(
            f"{name} must be an amount in USD, 0 or more, such as '0.05', got {quote(value)}."
        )
    return amount


def checked_count(name: str, value: Any) -> int:
    """
    Return a whole number, 1 or more; a string is parsed.

    :raises InvalidInputError: The value is not such a number.
    """
    count = _number(value)
    if not 1 <= count < math.inf or count != int(count):
        raise InvalidInputError(f"{name} must be a whole number, 1 or more, got {quote(value)}.")
    return int(count)


def checked_file_size(name: str, value: Any) -> int:
    """
    Return a size in bytes, up to the 5 GiB that S3 accepts in one request; a string is parsed.

    :raises InvalidInputError: The value is not such a number.
    """
    size = _number(value)
    if not 1 <= size <= FILE_MAX_BYTES or size != int(size):
        raise InvalidInputError(
            f"{name} must be a whole number of bytes from 1 to {FILE_MAX_BYTES} (5 GiB), got {quote(value)}."
        )
    return int(size)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
