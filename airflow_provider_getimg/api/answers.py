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
from airflow_provider_getimg.api.types import RateLimit

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
_MESSAGE_CHARACTERS = 500

#: What a server may ask to wait, in seconds: more is taken for a mistake, and for not told.
MAX_WAIT = 6 * 3600.0


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
    detail = one_line(said.get("message", ""), _MESSAGE_CHARACTERS, redact) or None
    code = one_line(said.get("code", ""), 60, redact) or None
    param = one_line(said.get("param", ""), 60, redact) or None
    where = f"({status}{f' {code}' if code else ''}{f', {param}' if param else ''})"
    message = detail or (
        excerpt(content, redact) if content.strip() else response.reason_phrase or "no reason given"
    )
    message = message if message.endswith((".", "!", "?")) else f"{message}."
    facts: dict[str, Any] = {"status": status, "code": code, "param": param, "detail": detail}
    if status in _REFUSALS:
        return _REFUSALS[status](f"getimg.ai refused the request {where}: {message}", **facts)
    if status in _NOT_TAKEN:
        target = redact(response.headers.get("location", "nowhere").partition("?")[0])
        return RequestRefusedError(
            f"The request was not taken ({status}, location {target}): check the connection's base URL and "
            "proxy. Redirects of a generation are never followed.",
            **facts,
        )
    if status == 429:
        wait = wait_before_next(response)
        hint = "" if wait is None else f" It asks to wait {wait:.0f} seconds."
        return RateLimitError(
            f"getimg.ai is limiting requests {where}: {message}{hint}", retry_after=wait, **facts
        )
    return otherwise(f"getimg.ai failed {where}: {message}", retry_after=wait_before_next(response), **facts)


def _said_by_the_api(content: bytes) -> dict[str, str]:
    """Return the fields of the API's error body that are texts; nothing for a proxy's HTML page."""
    try:
        error = json.loads(content)["error"]
        return {name: text for name, text in error.items() if isinstance(text, str) and text}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def wait_before_next(response: httpx.Response) -> float | None:
    """Return the seconds until another try, from ``Retry-After`` or ``X-RateLimit-Reset``; None if not told."""
    asked = response.headers.get("retry-after")
    if asked is not None:
        wait = _seconds(asked)
        return _bounded(wait if wait is not None else _seconds_until_date(asked))
    reset = _seconds(response.headers.get("x-ratelimit-reset"))
    # A limit that has requests left is not the one that was hit: its reset says nothing.
    if reset is not None and response.headers.get("x-ratelimit-remaining") in (None, "0"):
        wait = reset - time.time()
        return wait if 0 < wait <= MAX_WAIT else None
    return None


def rate_limit(response: httpx.Response) -> RateLimit | None:
    """Return what an answer tells of the limit on requests per minute; None if not told."""
    remaining = _seconds(response.headers.get("x-ratelimit-remaining"))
    reset = _seconds(response.headers.get("x-ratelimit-reset"))
    if remaining is None or reset is None:
        return None
    # By the server's own clock where it tells the time: the two need not agree.
    try:
        now = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    except ValueError:
        now = time.time()
    resets_in = reset - now
    return RateLimit(int(remaining), resets_in) if 0 < resets_in <= MAX_WAIT else None


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _bounded(wait: float | None) -> float | None:
    return wait if wait is not None and wait <= MAX_WAIT else None


def _seconds_until_date(text: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def excerpt(content: bytes, redact: Redact) -> str:
    """Quote the start of an answer, on one line, with nothing secret in it."""
    # A part of it first: an answer may be megabytes, and the end is not quoted anyway.
    start = content[: 40 * _EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
    return repr(one_line(start, _EXCERPT_CHARACTERS, redact))


def one_line(text: str, characters: int, redact: Redact) -> str:
    """Return the start of a text on one line, with nothing secret in it."""
    line = " ".join(redact(text[: 40 * characters]).split())
    return line if len(line) <= characters else f"{line[:characters]}..."


def redacted(text: str, api_key: str) -> str:
    """Take ``api_key`` and the query strings of URLs out of ``text``."""
    return without_query(text.replace(api_key, "***") if api_key else text)
