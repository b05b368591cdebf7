# SPDX-License-Identifier: Apache-2.0
"""How messages quote a value that was given."""

from __future__ import annotations

from airflow_provider_getimg.api.signed_urls import without_query

_CHARACTERS = 60
# Of a long text no more is looked at: a data URL may be 25 MiB.
_LOOKED_AT = 1000


def quote(value: object) -> str:
    """Return a value's ``repr`` for a message, without the query strings of URLs and cut where it is long. Never raises."""
    try:
        text = without_query(repr(value[:_LOOKED_AT] if isinstance(value, str) else value))
    except Exception:
        # An integer of thousands of digits, or a class of somebody else's.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
