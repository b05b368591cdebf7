# SPDX-License-Identifier: Apache-2.0
"""Turn pydantic's validation errors into sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_getimg.api.quote import quote

if TYPE_CHECKING:
    from pydantic import ValidationError

# The expected type, by the first word of pydantic's error type.
_EXPECTED = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a dict",
    "model": "a dict",
    "timezone": "a time with a time zone",
    "datetime": "a time",
    "date": "a date",
}


def first_error(error: ValidationError) -> str:
    """Return the first error that pydantic found as a sentence, such as ``prompt must be a string, got 7.``."""
    fault = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    where = where if where.isprintable() else quote(where)
    if fault["type"] == "value_error":
        return f"{where} {fault['ctx']['error']}."
    if fault["type"] == "missing":
        return f"{where} is missing."
    if fault["type"] in ("extra_forbidden", "invalid_key"):
        return f"{where} is not a known field."
    kind = fault["type"].partition("_")[0]
    expected = _EXPECTED.get(kind, "something else")
    return f"{where or 'It'} must be {expected}, got {quote(fault['input'])}."
