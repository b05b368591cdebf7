# SPDX-License-Identifier: Apache-2.0
"""Quote input values in messages."""

from __future__ import annotations

from airflow_provider_getimg.api.signed_urls import without_query

_CHARACTERS = 60
# Look at no more of a long string: a data URL may be 25 MiB.
_LOOKED_AT = 1000


def quote(value: object) -> str:
    """Return a value's ``repr`` for a message, truncated and without the query strings of URLs. Never raises."""
    try:
        text = without_query(repr(value[:_LOOKED_AT] if isinstance(value, str) else value))
    except Exception:
        # repr() failed: an integer with thousands of digits, or a third-party class.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
