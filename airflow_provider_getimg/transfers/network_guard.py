# SPDX-License-Identifier: Apache-2.0
"""
Where a download may go.

URLs come from an XCom, which other tasks can write: they must not turn a worker into a way into the
internal network. The scheme is checked before a request, the address once a socket is connected, before a byte is
sent: a name that resolves differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from airflow_provider_getimg.api.errors import FileRefusedError
from airflow_provider_getimg.api.settings import is_loopback
from airflow_provider_getimg.api.signed_urls import without_query

if TYPE_CHECKING:
    from airflow_provider_getimg.api.connection_watch import Peer

    IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class NetworkGuard:
    """
    Lets downloads reach the public internet, and the connection's own base URL.

    A proxy may be anywhere: where it leads is for it to decide.

    :param base_url: Of the getimg connection. Its addresses are allowed though they be private; where it is plain
        http, plain http is allowed.
    :param proxy: The connection's proxy, beside those of the environment.
    """

    def __init__(self, base_url: str, proxy: str | None = None) -> None:
        self._base_url = base_url
        proxies = [proxy, *getproxies().values()]
        self._proxy_hosts = {urlsplit(url).hostname for url in proxies if url} - {None}

    def check_url(self, url: str) -> None:
        """
        Refuse plain http, but to this machine or where the base URL is plain http itself.

        :raises FileRefusedError: The URL may not be requested.
        """
        scheme = urlsplit(url).scheme
        plain_http_is_meant = self._base_url.startswith("http://") or is_loopback(url)
        if scheme != "https" and not (scheme == "http" and plain_http_is_meant):
            raise FileRefusedError(f"The URL {without_query(url)} is not https: it was not requested.")

    def check_peer(self, peer: Peer) -> None:
        """
        Refuse a private, loopback or link-local address that is not the base URL's own.

        :raises FileRefusedError: The connection may not be used.
        """
        address = _address(peer.address)
        if address.is_global or peer.host in self._proxy_hosts or address in self._own_addresses:
            return
        raise FileRefusedError(
            f"The URL's host {peer.host!r} is the private address {address}, which is not the one of the "
            "connection's base URL: nothing was requested."
        )

    @cached_property
    def _own_addresses(self) -> frozenset[IPAddress]:
        try:
            found = socket.getaddrinfo(urlsplit(self._base_url).hostname, None, type=socket.SOCK_STREAM)
        except OSError:
            return frozenset()
        return frozenset(_address(str(sockaddr[0])) for *_, sockaddr in found)


def _address(text: str) -> IPAddress:
    address = ipaddress.ip_address(text.partition("%")[0])
    # ::ffff:10.0.0.1 is 10.0.0.1 on the wire.
    return getattr(address, "ipv4_mapped", None) or address
