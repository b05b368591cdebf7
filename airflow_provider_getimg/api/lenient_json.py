# SPDX-License-Identifier: Apache-2.0
"""
Parse the JSON of a paid response, however odd it is.

A paid response must not be lost to a stray byte, or to a value that Airflow or its database later refuses to store:
``NaN``, integers over 64 bits, lone surrogates, NUL characters, and names that Airflow's serialization reserves.
"""

from __future__ import annotations

import json
import math
from typing import Any

# Airflow's serializer is recursive. No documented response is nested deeper than five levels.
_MAX_DEPTH = 64
_MAX_INTEGER = 2**63


def loads(content: bytes) -> Any:
    """
    Return the first JSON value in ``content``, as plain data that Airflow can store.

    Bytes that are not text become replacement characters, and anything after the value is ignored. A number that JSON
    or Airflow can't represent becomes None or a float.

    :raises ValueError: ``content`` does not begin with a JSON value, or is nested too deeply to be parsed.
    """
    text = content.decode(json.detect_encoding(content), errors="replace").lstrip("\ufeff \t\r\n\x00")
    try:
        value, _ = _DECODER.raw_decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _storable(value, _MAX_DEPTH)


def _integer(digits: str) -> int | float | None:
    # Python's own int() refuses more than a few thousand digits.
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
