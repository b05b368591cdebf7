# SPDX-License-Identifier: Apache-2.0
"""What a client is set up with, checked before any request: one sentence for each wrong value."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import math
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx

from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.signed_urls import without_query

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_BASE_URL = "https://api.getimg.ai"
DEFAULT_TIMEOUT = 300.0
MAX_TIMEOUT = 86_400.0


@dataclass(frozen=True)
class ClientSettings:
    """
    How the API is reached.

    :param base_url: With scheme, without a slash at its end.
    :param timeout: Seconds that a generation may take.
    :param proxy: URL of a proxy, or None. May hold a password: kept out of ``repr()``.
    """

    base_url: str = DEFAULT_BASE_URL
    timeout: float = DEFAULT_TIMEOUT
    proxy: str | None = field(default=None, repr=False)

    @classmethod
    def checked(cls, base_url: str | None, timeout: object, proxy: str | None) -> Self:
        """
        Build settings from what a user typed; empty values mean the defaults.

        :raises ConnectionConfigError: One of them can't be used.
        """
        return cls(checked_base_url(base_url), checked_timeout(timeout), checked_proxy(proxy))


# Filters don't reach the records of child loggers: each is named.
_TALKATIVE_LOGGERS = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
)

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def checked_api_key(api_key: str | None) -> str:
    """Return the key without the white space that pasting adds. The key itself is never quoted."""
    key = (api_key or "").strip()
    if not key:
        raise ConnectionConfigError("The API key is missing: put it into the password field.")
    if set(key) == {"*"}:
        raise ConnectionConfigError(
            "The API key is Airflow's mask for it (***), not the key: type it in again."
        )
    for position, character in enumerate(key, start=1):
        if not "!" <= character <= "~":
            raise ConnectionConfigError(
                f"The API key has a character at position {position} that no key has: paste it again."
            )
    return key


def checked_base_url(base_url: str | None) -> str:
    """Return the base URL without a slash at its end; the API's own where none is given."""
    url = (base_url or "").strip().rstrip("/") or DEFAULT_BASE_URL
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # As the request will do: a host that can't be encoded is found here, and not after a POST was noted.
        httpx.URL(url).raw_host.decode().encode("idna")
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise ConnectionConfigError(
            f"The base URL is {url!r}: it must start with https:// (or http://) and name a host, such as "
            f"{DEFAULT_BASE_URL}."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConnectionConfigError(
            "The base URL must not hold a user, a password, a query or a fragment: the API key belongs in "
            "the password field."
        )
    return url


def checked_timeout(timeout: object) -> float:
    """Return the time-out in seconds; the default where none is given."""
    if timeout is None or timeout == "":
        return DEFAULT_TIMEOUT
    try:
        seconds = math.nan if isinstance(timeout, bool) else float(timeout)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ConnectionConfigError(
            f"The timeout is {timeout!r}: a positive number of seconds, at most {MAX_TIMEOUT:g}, is allowed, such as 300."
        )
    return seconds


def checked_proxy(proxy: str | None) -> str | None:
    """Return the proxy's URL, or None where none is given. Its password is never quoted."""
    url = str(proxy or "").strip()
    if not url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConnectionConfigError(
            "The proxy is no URL that can be used: it must start with http://, https:// or socks5:// and "
            "name a host, such as http://proxy.example.com:3128."
        )
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConnectionConfigError("A SOCKS proxy needs one more package: pip install 'httpx[socks]'.")
    return url


def http_client(*, headers: Mapping[str, str], **options: Any) -> httpx.Client:
    """
    Return an httpx client that uses each connection once. It also reads the environment's proxies and certificates.

    :raises ConnectionConfigError: One of those can't be used.
    """
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).addFilter(_strip_queries)
    try:
        return httpx.Client(
            # Not to the pool alone: between the end of an answer and the closing of its connection, another thread's
            # request may be given that connection, and dies with it. This header makes it unusable at once.
            headers={**headers, "Connection": "close"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            **options,
        )
    except (ValueError, ImportError, OSError, ssl.SSLError) as error:
        raise ConnectionConfigError(
            "The worker's environment can't be used (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE): "
            f"{type(error).__name__}."
        ) from None


def _strip_queries(record: logging.LogRecord) -> bool:
    """Take the query strings of URLs out of a log line: httpx and httpcore write down what they request."""
    message = record.getMessage()
    stripped = without_query(message)
    if stripped != message:
        record.msg, record.args = stripped, None
    return True


def is_loopback(url: str) -> bool:
    """Tell whether the URL names this machine itself: ``localhost`` or a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
