# SPDX-License-Identifier: Apache-2.0
"""
Read the JSON of a paid response, whatever oddities it has.

A response that was paid must neither be lost to a stray byte nor to what Airflow or its database refuses to store later:
``NaN``, integers of more than 64 bits, half of a surrogate pair, NUL characters, and names that Airflow's serialization
keeps for itself.
"""

from __future__ import annotations

import json
import math
from typing import Any

# Airflow's serializer is recursive. No documented response is deeper than five levels.
_MAX_DEPTH = 64
_MAX_INTEGER = 2**63


def loads(content: bytes) -> Any:
    """
    Return the first JSON value in ``content``, as plain data that Airflow can store.

    Bytes that are not text become replacement characters, and what follows the value is ignored. A number that JSON or
    Airflow can't hold becomes None or a float.

    :raises ValueError: It does not begin with a JSON value, or is nested too deeply to be read.
    """
    text = content.decode(json.detect_encoding(content), errors="replace").lstrip("\ufeff \t\r\n\x00")
    try:
        value, _ = _DECODER.raw_decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _storable(value, _MAX_DEPTH)


def _integer(digits: str) -> int | float | None:
    # Long digits are no integer to Python itself, past a few thousand of them.
    if len(digits.lstrip("-")) < 20 and abs(whole := int(digits)) < _MAX_INTEGER:
        return whole
    return _number(digits)


def _number(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


_DECODER = json.JSONDecoder(
    parse_int=_integer, parse_float=_number, parse_constant=lambda _: None, strict=False
)


def _storable(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "").encode(errors="replace").decode()
    if isinstance(value, dict | list) and not depth:
        return None
    if isinstance(value, dict):
        return {
            _storable(name, depth): _storable(part, depth - 1)
            for name, part in value.items()
            if not name.startswith("__")
        }
    if isinstance(value, list):
        return [_storable(part, depth - 1) for part in value]
    return value
