# SPDX-License-Identifier: Apache-2.0
"""The hosts and ports of URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

#: By scheme.
DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def host_of(url: httpx.URL) -> str:
    """Return the host as it is compared: in lower case, encoded, and without a trailing dot."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


def port_of(url: httpx.URL) -> int:
    """Return the port; 0 if the URL has none and its scheme has no default."""
    return url.port or DEFAULT_PORTS.get(url.scheme, 0)
