# SPDX-License-Identifier: Apache-2.0
"""A client's settings, checked before any request: one sentence for each invalid value."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx

from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.proxies import checked_proxy
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.api.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_BASE_URL = "https://api.getimg.ai"
DEFAULT_TIMEOUT = 300.0
MAX_TIMEOUT = 86_400.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ClientSettings:
    """
    How to reach the API.

    :param base_url: With scheme, without a trailing slash.
    :param timeout: Time limit for a generation, in seconds.
    :param proxy: URL of a proxy, or None. May hold a password: kept out of ``repr()``.
    :param allowed_networks: Non-public networks that downloads may reach.
    """

    base_url: str = DEFAULT_BASE_URL
    timeout: float = DEFAULT_TIMEOUT
    proxy: str | None = field(default=None, repr=False)
    allowed_networks: tuple[Network, ...] = ()

    @classmethod
    def checked(
        cls, base_url: str | None, timeout: object, proxy: object, allowed_networks: object = None
    ) -> Self:
        """
        Build settings from user input; empty values mean the defaults.

        :raises ConnectionConfigError: One of them is invalid.
        """
        return cls(
            checked_base_url(base_url),
            checked_timeout(timeout),
            checked_proxy(proxy),
            checked_networks(allowed_networks),
        )


# Filters don't apply to the records of child loggers, so list each one.
_URL_LOGGERS = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
)

_API_KEY = re.compile(r"(?<![A-Za-z0-9])sk_[A-Za-z0-9]")


def checked_api_key(api_key: str | None) -> str:
    """Return the key without the white space that pasting adds. Errors never quote the key."""
    key = (api_key or "").strip()
    if not key:
        raise ConnectionConfigError("The API key is missing: enter it in the password field.")
    if set(key) == {"*"}:
        raise ConnectionConfigError(
            "The API key is Airflow's mask for it (***), not the key: enter it again."
        )
    for position, character in enumerate(key, start=1):
        if not "!" <= character <= "~":
            raise ConnectionConfigError(
                f"The API key contains an invalid character at position {position}. Paste it again."
            )
    return key


def checked_base_url(base_url: str | None) -> str:
    """Return the base URL without a trailing slash; the API's own by default."""
    url = (base_url or "").strip().rstrip("/") or DEFAULT_BASE_URL
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        holds_more = bool(parts.username or parts.password or parts.query or parts.fragment)
        # Encode the host as the request will, to find a bad one before a POST is recorded.
        httpx.URL(url).raw_host.decode().encode("idna")
    except (ValueError, httpx.InvalidURL):
        usable = holds_more = False
    if holds_more or _API_KEY.search(url):
        raise ConnectionConfigError(
            "The base URL must not contain a user, a password, a query, a fragment or an API key: the API key "
            "belongs in the password field."
        )
    if not usable:
        # Without a scheme, it may be anything, such as a key.
        got = f", got {_quoted(url)}" if "://" in url else ""
        raise ConnectionConfigError(
            f"The base URL must start with https:// (or http://) and name a host, such as {DEFAULT_BASE_URL}{got}."
        )
    return url


def checked_timeout(timeout: object) -> float:
    """Return the timeout in seconds, or the default if none is given."""
    if timeout is None or timeout == "":
        return DEFAULT_TIMEOUT
    try:
        seconds = math.nan if isinstance(timeout, bool) else float(timeout)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ConnectionConfigError(
            f"timeout must be a positive number of seconds, at most {MAX_TIMEOUT:g}, got {_quoted(timeout)}."
        )
    return seconds


def checked_networks(networks: object) -> tuple[Network, ...]:
    """Return the networks in a list, or in a string separated by commas or spaces; empty if none are given."""
    entries = networks
    if isinstance(networks, str):
        try:
            # A connection URI stores a list as JSON.
            entries = json.loads(networks)
        except (ValueError, RecursionError):
            entries = networks.replace(",", " ").split()
    if entries is None:
        return ()
    if not isinstance(entries, list | tuple):
        entries = [entries]
    return tuple(map(_network, entries))


def _network(entry: object) -> Network:
    try:
        # ip_network() would read a number as an address.
        return ipaddress.ip_network(entry.strip() if isinstance(entry, str) else "")
    except ValueError:
        raise ConnectionConfigError(
            f"allowed_networks must be a list of networks such as 10.0.0.0/8 or fd00::/8, got {_quoted(entry)}."
        ) from None


def _quoted(value: object) -> str:
    """Quote user input, but mask what may be an API key entered in the wrong field."""
    quoted = quote(value)
    return "'***'" if _API_KEY.search(quoted) else quoted


def http_client(
    *,
    headers: Mapping[str, str],
    proxy: str | None = None,
    transport: Transport | None = None,
    **options: Any,
) -> httpx.Client:
    """
    Return an httpx client that uses each connection once, with this package's choice of proxies and certificates.

    :param proxy: URL of the connection's proxy; without one, the environment decides.
    :param transport: Used instead of the default one; it then decides on connections and proxies.
    :raises ConnectionConfigError: The environment's proxies or certificates can't be used.
    """
    mask_urls_in_logs()
    # Don't rely on the pool's limits alone: between the end of a response and the closing of its connection, the pool
    # may give that connection to another thread's request, which dies with it. This header makes it unusable immediately.
    once = {"Connection": "close"} if transport is None else {}
    return httpx.Client(
        transport=transport or Transport(proxy), trust_env=False, headers={**headers, **once}, **options
    )


def mask_urls_in_logs() -> None:
    """Keep the query strings of URLs out of the logs of httpx and httpcore."""
    for name in _URL_LOGGERS:
        logging.getLogger(name).addFilter(_strip_queries)


def _strip_queries(record: logging.LogRecord) -> bool:
    """Remove the query strings of URLs from a log line: httpx and httpcore log the URLs they request."""
    message = record.getMessage()
    stripped = without_query(message)
    if stripped != message:
        record.msg, record.args = stripped, None
    return True


def is_loopback(url: str) -> bool:
    """Return whether the URL names this machine itself: ``localhost`` or a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
