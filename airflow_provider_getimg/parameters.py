# SPDX-License-Identifier: Apache-2.0
"""Checks of the operators' parameters, which Jinja may have made: one sentence for each wrong value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence


def checked_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """
    Return ``value`` if it is one of ``choices``.

    :raises InvalidInputError: It is none of them.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise InvalidInputError(f"{name} is {value!r}: {listed} and {choices[-1]!r} are allowed.")
    return str(value)


def checked_seconds(name: str, value: Any) -> float:
    """
    Return a time in seconds, 0 or more; a text is read as a number.

    :raises InvalidInputError: It is no such number.
    """
    seconds = _number(value)
    if not 0 <= seconds < math.inf:
        raise InvalidInputError(f"{name} is {value!r}: a number of seconds, 0 or more, is allowed.")
    return seconds


def checked_count(name: str, value: Any) -> int:
    """
    Return a whole number, 1 or more; a text is read as a number.

    :raises InvalidInputError: It is no such number.
    """
    count = _number(value)
    if not 1 <= count < math.inf or count != int(count):
        raise InvalidInputError(f"{name} is {value!r}: a whole number, 1 or more, is allowed.")
    return int(count)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
