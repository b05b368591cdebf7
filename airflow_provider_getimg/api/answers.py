# SPDX-License-Identifier: Apache-2.0
"""From an HTTP answer that is no success to the error that says what it means and what it cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.api.errors import (
    AuthenticationError,
    ContentPolicyError,
    GetimgError,
    InsufficientBalanceError,
    InvalidRequestError,
    OutcomeUnknownError,
    RateLimitError,
    RequestRefusedError,
    UnavailableError,
)
from airflow_provider_getimg.api.signed_urls import without_query

if TYPE_CHECKING:
    import httpx

Redact = Callable[[str], str]

# Documented as refusals, and so as not billed. Any other status on a generation is an unknown outcome,
# but for those that say that another server than the API answered.
_REFUSALS: dict[int, type[RequestRefusedError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: RequestRefusedError,
    404: RequestRefusedError,
    413: RequestRefusedError,
    422: ContentPolicyError,
}
# The request was not taken: it stands elsewhere (a base URL that moved), or a proxy wants a password.
# 302 and 303 are not here: after a POST they may mean "done, look there".
_NOT_TAKEN = frozenset({301, 307, 308, 407})

_EXCERPT_CHARACTERS = 300


def generation_error(response: httpx.Response, content: bytes, redact: Redact) -> GetimgError:
    """Return the error for the answer to a billed POST."""
    return _error(response, content, redact, OutcomeUnknownError)


def free_call_error(response: httpx.Response, content: bytes, redact: Redact) -> GetimgError:
    """Return the error for the answer to a call that costs nothing."""
    return _error(response, content, redact, UnavailableError)


def _error(
    response: httpx.Response, content: bytes, redact: Redact, otherwise: type[GetimgError]
) -> GetimgError:
    status = response.status_code
    said = _said_by_the_api(content)
    detail = redact(said["message"]) if said.get("message") else None
    code, param = said.get("code"), said.get("param")
    where = f"({status}{f' {code}' if code else ''}{f', {param}' if param else ''})"
    message = detail or (
        excerpt(content, redact) if content.strip() else response.reason_phrase or "no reason given"
    )
    message = message if message.endswith((".", "!", "?")) else f"{message}."
    facts: dict[str, Any] = {"status": status, "code": code, "param": param, "detail": detail}
    if status in _REFUSALS:
        return _REFUSALS[status](f"getimg.ai refused the request {where}: {message}", **facts)
    if status in _NOT_TAKEN:
        target = redact(response.headers.get("location", "nowhere"))
        return RequestRefusedError(
            f"The request was not taken ({status}, location {target}): check the connection's base URL and "
            "proxy. Redirects of a generation are never followed.",
            **facts,
        )
    if status == 429:
        wait = _wait(response)
        hint = "" if wait is None else f" It asks to wait {wait:.0f} seconds."
        return RateLimitError(
            f"getimg.ai is limiting requests {where}: {message}{hint}", retry_after=wait, **facts
        )
    return otherwise(f"getimg.ai failed {where}: {message}", retry_after=_wait(response), **facts)


def _said_by_the_api(content: bytes) -> dict[str, str]:
    """Return the fields of the API's error body that are texts; nothing for a proxy's HTML page."""
    try:
        error = json.loads(content)["error"]
        return {name: text for name, text in error.items() if isinstance(text, str) and text}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _wait(response: httpx.Response) -> float | None:
    """Return the seconds until another try, from ``Retry-After`` or ``X-RateLimit-Reset``."""
    asked = response.headers.get("retry-after")
    if asked is not None:
        wait = _seconds(asked)
        return wait if wait is not None else _seconds_until_date(asked)
    reset = _seconds(response.headers.get("x-ratelimit-reset"))
    # A limit that has requests left is not the one that was hit: its reset says nothing.
    if reset is not None and response.headers.get("x-ratelimit-remaining") in (None, "0"):
        return max(0.0, reset - time.time())
    return None


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until_date(text: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def excerpt(content: bytes, redact: Redact) -> str:
    """Quote the start of an answer, on one line, with nothing secret in it."""
    text = " ".join(redact(content.decode("utf-8", errors="replace")).split())
    return repr(text if len(text) <= _EXCERPT_CHARACTERS else f"{text[:_EXCERPT_CHARACTERS]}...")


def redacted(text: str, api_key: str) -> str:
    """Take ``api_key`` and the query strings of URLs out of ``text``."""
    return without_query(text.replace(api_key, "***") if api_key else text)
