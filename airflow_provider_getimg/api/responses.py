# SPDX-License-Identifier: Apache-2.0
"""Turn an unsuccessful HTTP response into an error that says what it means and what it cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_getimg.api.errors import (
    PREPAID,
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
from airflow_provider_getimg.api.printable import printable
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.api.transport import PROXY_EXTENSION
from airflow_provider_getimg.api.types import RateLimit

if TYPE_CHECKING:
    import httpx

Redact = Callable[[str], str]

# Documented as refusals, so not billed. Any other status on a generation is an unknown outcome, except 429 and those that
# show that a server other than the API responded (_MOVED), or a proxy that wants a password (407).
_REFUSALS: dict[int, type[RequestRefusedError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: RequestRefusedError,
    404: RequestRefusedError,
    413: RequestRefusedError,
    422: ContentPolicyError,
}
# The request was not accepted; it belongs elsewhere. Not 302 or 303: after a POST, they may mean "done, look there".
_MOVED = frozenset({301, 307, 308})

_EXCERPT_CHARACTERS = 300
_MESSAGE_CHARACTERS = 500

#: The longest wait that a server may ask for, in seconds; a longer one is a mistake and is ignored.
MAX_WAIT = 6 * 3600.0


def generation_error(response: httpx.Response, content: bytes, redact: Redact) -> GetimgError:
    """Return the error for the response to a billed POST."""
    return _error(response, content, redact, OutcomeUnknownError)


def free_call_error(response: httpx.Response, content: bytes, redact: Redact) -> GetimgError:
    """Return the error for the response to a call that costs nothing."""
    return _error(response, content, redact, UnavailableError)


def _error(
    response: httpx.Response, content: bytes, redact: Redact, otherwise: type[GetimgError]
) -> GetimgError:
    status = response.status_code
    said = _api_error_fields(content)
    detail = one_line(said.get("message", ""), _MESSAGE_CHARACTERS, redact) or None
    code = one_line(said.get("code", ""), 60, redact) or None
    param = one_line(said.get("param", ""), 60, redact) or None
    doc_url = _doc_url(said.get("doc_url", ""))
    # A code that only repeats the status adds nothing.
    where = ", ".join(
        filter(None, [str(status) if code in (None, str(status)) else f"{status} {code}", param])
    )
    message = detail or (
        excerpt(content, redact) if content.strip() else _reason_phrase(response, redact) or "no reason given"
    )
    message = message if message.endswith((".", "!", "?")) else f"{message}."
    proxy = response.extensions.get(PROXY_EXTENSION)
    if proxy and not said:
        message += f" It came through the proxy {proxy}."
    if doc_url:
        message += f" See {doc_url}."
    facts: dict[str, Any] = {
        "status": status,
        "code": code,
        "param": param,
        "detail": detail,
        "doc_url": doc_url,
    }
    if status == 402:
        message += f" {PREPAID}"
    if status in _REFUSALS:
        return _REFUSALS[status](f"getimg.ai refused the request ({where}): {message}", **facts)
    if status == 407:
        return RequestRefusedError(
            f"The proxy {proxy or 'on the way'} refused the request (407): check its user and password.",
            **facts,
        )
    if status in _MOVED:
        location = response.headers.get("location")
        target = one_line(location.partition("?")[0], 200, redact) if location else "no readable location"
        return RequestRefusedError(
            f"The request was redirected ({status}, to {target}): check the connection's base URL. Redirects of a "
            "generation are never followed.",
            **facts,
        )
    if status == 429:
        wait = wait_before_next(response)
        hint = "" if wait is None else f" It asks clients to wait {wait:.0f} seconds."
        return RateLimitError(
            f"getimg.ai is limiting requests ({where}): {message}{hint}", retry_after=wait, **facts
        )
    return otherwise(
        f"getimg.ai failed ({where}): {message}", retry_after=wait_before_next(response), **facts
    )


def _api_error_fields(content: bytes) -> dict[str, str]:
    """Return the string fields of the API's error body; empty for a proxy's HTML page."""
    try:
        error = json.loads(content)["error"]
        return {name: text for name, text in error.items() if isinstance(text, str) and text}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _doc_url(url: str) -> str | None:
    """Return the API's link to a page about an error, without its query, if safe to show: https and no user part."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    # Keep the fragment, unless it holds values as a query does.
    place = f"#{parts.fragment}" if parts.fragment and "=" not in parts.fragment else ""
    shown = f"https://{parts.netloc}{parts.path}{place}"
    usable = parts.scheme == "https" and parts.netloc and "@" not in parts.netloc and len(shown) <= 200
    return shown if usable and shown.isascii() and " " not in shown and shown.isprintable() else None


def _reason_phrase(response: httpx.Response, redact: Redact) -> str:
    return one_line(response.reason_phrase, _EXCERPT_CHARACTERS, redact)


# Functions that read headers never raise: a paid response may have a nonsensical header.


def wait_before_next(response: httpx.Response) -> float | None:
    """Return the seconds to wait before retrying, from ``Retry-After`` or ``X-RateLimit-Reset``; None if absent."""
    asked = response.headers.get("retry-after")
    if asked is not None:
        wait = _seconds(asked)
        if wait is None and (moment := _moment(asked)) is not None:
            wait = max(0.0, moment - server_time(response))
        return wait if wait is not None and wait <= MAX_WAIT else None
    reset = _seconds(response.headers.get("x-ratelimit-reset"))
    # A limit with requests left is not the one that was hit: ignore its reset.
    if reset is not None and response.headers.get("x-ratelimit-remaining") in (None, "0"):
        wait = reset - server_time(response)
        return wait if 0 < wait <= MAX_WAIT else None
    return None


def rate_limit(response: httpx.Response) -> RateLimit | None:
    """Return the limit on requests per minute that a response reports; None if absent."""
    remaining = _seconds(response.headers.get("x-ratelimit-remaining"))
    reset = _seconds(response.headers.get("x-ratelimit-reset"))
    if remaining is None or reset is None:
        return None
    resets_in = reset - server_time(response)
    if not 0 < resets_in <= MAX_WAIT:
        return None
    limit = _seconds(response.headers.get("x-ratelimit-limit"))
    return RateLimit(int(remaining), resets_in, int(limit) if limit else None)


def server_time(response: httpx.Response) -> float:
    """Return the Unix time by the server's clock, if the response has a valid date: the worker's may differ."""
    now = _moment(response.headers.get("date", ""))
    return time.time() if now is None else now


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _moment(text: str) -> float | None:
    """Return the Unix time of a header's date; None if it can't be read."""
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except Exception:
        # ValueError, TypeError, IndexError, OverflowError: the parser raises any of them for a bad date.
        return None


def excerpt(content: bytes, redact: Redact) -> str:
    """Quote the start of a response, on one line, without secrets."""
    # Cut it first: a response may be megabytes, and its end is not quoted anyway.
    start = content[: 40 * _EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
    return repr(one_line(start, _EXCERPT_CHARACTERS, redact))


def one_line(text: str, characters: int, redact: Redact) -> str:
    """Return the start of a text on one line, without secrets or control characters."""
    line = " ".join(printable(redact(text[: 40 * characters])).split())
    return line if len(line) <= characters else f"{line[:characters]}..."


def redacted(text: str, api_key: str) -> str:
    """Remove ``api_key`` and the query strings of URLs from ``text``."""
    return without_query(text.replace(api_key, "***") if api_key else text)
