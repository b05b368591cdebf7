# SPDX-License-Identifier: Apache-2.0
"""Choose a request's proxy: the connection's, or the one from the worker's environment."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.hosts import DEFAULT_PORTS, host_of, port_of

_SCHEMES = ("http", "https", "socks5", "socks5h")
# Brackets around a whole entry or a network's address. Not those of [::1]:80, where a port follows.
_BRACKETS = re.compile(r"^\[([^\]]*)\](?=$|/)")


@dataclass(frozen=True)
class Proxy:
    """
    A proxy and where it was configured.

    :param url: With scheme. May hold a password: kept out of ``repr()``.
    :param source: The environment variable that names it, or "the connection's proxy".
    """

    url: str = field(repr=False)
    source: str

    @property
    def host(self) -> str:
        """The proxy's host name or address, in lower case."""
        return urlsplit(self.url).hostname or ""

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{parts.port or DEFAULT_PORTS[parts.scheme]} ({self.source})"


class Proxies:
    """
    The single place that chooses proxies, for API calls and downloads alike.

    The connection's proxy applies to all requests. Without one, the environment decides: ``HTTPS_PROXY``,
    ``HTTP_PROXY`` and ``ALL_PROXY``, except for the hosts in ``NO_PROXY``. Both are read once.

    :param configured: URL of the connection's proxy, if it has one.
    :raises ConnectionConfigError: A proxy from the environment can't be used.
    """

    def __init__(self, configured: str | None = None) -> None:
        self._configured = Proxy(configured, "the connection's proxy") if configured else None
        self._by_scheme: dict[str, Proxy] = {}
        self._direct = NoProxy("")
        if self._configured is None:
            found = getproxies()
            self._direct = NoProxy(found.get("no", ""))
            for scheme in () if self._direct.everything else ("http", "https"):
                kind = scheme if found.get(scheme) else "all"
                if url := found.get(kind):
                    self._by_scheme[scheme] = _from_environment(url, kind)

    def of(self, url: httpx.URL) -> Proxy | None:
        """Return the proxy for a request to ``url``, or None for a direct connection."""
        if self._configured is not None:
            return self._configured
        proxy = self._by_scheme.get(url.scheme)
        if proxy is None or self._direct.holds(url):
            return None
        return proxy


class NoProxy:
    """
    The hosts in ``NO_PROXY``: names with their subdomains, addresses and networks (CIDR), each with an optional port.

    Any other entry is ignored.
    """

    def __init__(self, text: str) -> None:
        self._entries = [entry.lower() for entry in text.replace(",", " ").split()]
        self.everything = "*" in self._entries

    def holds(self, url: httpx.URL) -> bool:
        """Return whether the host of ``url`` is one of them."""
        return any(_matches(entry, url.scheme, host_of(url), port_of(url)) for entry in self._entries)


def _matches(entry: str, scheme: str, host: str, port: int) -> bool:
    entry_scheme, separator, rest = entry.rpartition("://")
    if separator and entry_scheme not in (scheme, "all"):
        return False
    address = _address(host)
    network = _network(rest)
    if network is not None:
        return address in network if address is not None else False
    try:
        parts = urlsplit(f"//{rest}")
        entry_port, name = parts.port, (parts.hostname or "").strip(".")
    except ValueError:
        return False
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*.")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network that an entry names; a single address counts as one. IPv6 may be in brackets."""
    try:
        return ipaddress.ip_network(_BRACKETS.sub(r"\1", text), strict=False)
    except ValueError:
        return None


def checked_proxy(proxy: object) -> str | None:
    """Return the URL of the connection's proxy, or None if there is none. Errors never quote its password."""
    url = str(proxy or "").strip()
    if not url:
        return None
    _check(url, "The proxy")
    return url


def _from_environment(url: str, kind: str) -> Proxy:
    # If both are set, lower case wins.
    name = f"{kind}_proxy" if os.environ.get(f"{kind}_proxy") else f"{kind.upper()}_PROXY"
    # A bare host and port is common there, and means plain http to the proxy.
    url = url.strip() if "://" in url else f"http://{url.strip()}"
    _check(url, name)
    return Proxy(url, name)


def _check(url: str, name: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
        httpx.Proxy(url).url.raw_host.decode().encode("idna")
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise ConnectionConfigError(
            f"{name} must start with http://, https:// or socks5:// and name a host, such as "
            "http://proxy.example.com:3128."
        )
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConnectionConfigError(
            f"{name} is a SOCKS proxy, which needs one more package: pip install 'httpx[socks]'."
        )
