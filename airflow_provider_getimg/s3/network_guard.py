# SPDX-License-Identifier: Apache-2.0
"""
Decides where a download may connect to.

URLs come from an XCom, which other tasks can write: they must not turn a worker into a gateway to the internal network
(server-side request forgery, SSRF).
The scheme and an IP address in the URL are checked before a request, the addresses of a host name before connecting, and
the socket's peer address before a byte is sent: a name that resolves differently the second time gains nothing.
"""

from __future__ import annotations

import socket
from functools import cached_property
from typing import TYPE_CHECKING

import httpx

from airflow_provider_getimg.api.errors import FileRefusedError, NetworkRefusedError
from airflow_provider_getimg.api.hosts import host_of, port_of
from airflow_provider_getimg.api.proxies import Proxies
from airflow_provider_getimg.api.settings import DEFAULT_BASE_URL, is_loopback
from airflow_provider_getimg.api.signed_urls import url_without_query
from airflow_provider_getimg.s3.addresses import address_of, embedded_addresses, is_public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_getimg.api.connection_watch import Peer
    from airflow_provider_getimg.api.settings import Network
    from airflow_provider_getimg.s3.addresses import Address


class NetworkGuard:
    """
    Lets downloads reach the public internet, the connection's own base URL, and the networks that the connection allows.

    A request's proxy may be anywhere, and decides itself what to connect to.

    :param base_url: The getimg connection's base URL. Its address and port may be private; if it is plain
        http, plain http is accepted.
    :param proxy: The connection's proxy.
    :param allowed_networks: The connection's ``allowed_networks``.
    """

    def __init__(
        self, base_url: str, proxy: str | None = None, allowed_networks: Sequence[Network] = ()
    ) -> None:
        self._base_url = httpx.URL(base_url)
        self._proxies = Proxies(proxy)
        self._allowed = tuple(allowed_networks)

    def check_url(self, url: str) -> None:
        """
        Refuse a URL before any connection is opened.

        Plain http is for this machine only, unless the base URL itself is plain http. An IP address, ``localhost`` or the
        proxy's own host is refused if :meth:`check_peer` would refuse it, even if the request goes through a proxy.

        :raises FileRefusedError: The URL may not be requested.
        """
        try:
            parsed = httpx.URL(url)
            host, port = host_of(parsed), port_of(parsed)
            # httpx encodes characters that no host name has, and a proxy might decode them.
            if "%" in host or (not host and parsed.scheme in ("http", "https")):
                raise ValueError("no host")
            # The request will do the same.
            host.encode("idna")
        except (httpx.InvalidURL, ValueError):
            raise FileRefusedError(
                f"The URL {url_without_query(url)} is invalid: it was not requested."
            ) from None
        plain_http_is_meant = self._base_url.scheme == "http" or is_loopback(str(parsed))
        if parsed.scheme != "https" and not (parsed.scheme == "http" and plain_http_is_meant):
            raise FileRefusedError(f"The URL {url_without_query(url)} is not https: it was not requested.")
        proxy = self._proxies.of(parsed)
        if (literal := address_of(host)) is not None:
            self._check(host, port, literal)
        elif proxy is not None and (host == proxy.host or is_loopback(str(parsed))):
            for address in _resolved(host):
                self._check(host, port, address)

    def check_peer(self, peer: Peer) -> None:
        """
        Refuse an address that is neither public, nor the base URL's own, nor in an allowed network.

        :raises FileRefusedError: The connection may not be used.
        """
        if not peer.is_proxy:
            self._check(peer.host, peer.port, address_of(peer.address))

    def check_before_payment(self) -> None:
        """
        Before anything is paid for, fail if every download would be refused.

        Files are served by the base URL's own host, which is always allowed, or, behind a gateway, by the API's host: this
        looks up the latter.

        :raises NetworkRefusedError: The API's host has only addresses that downloads may not reach.
        """
        files = httpx.URL(DEFAULT_BASE_URL)
        if is_loopback(str(self._base_url)) or self._proxies.of(files) is not None:
            return
        refusals: list[NetworkRefusedError] = []
        for address in _resolved(host_of(files)):
            try:
                self._check(host_of(files), port_of(files), address)
            except NetworkRefusedError as refusal:
                refusals.append(refusal)
            else:
                return
        if refusals:
            raise refusals[0]

    def _check(self, host: str, port: int, address: Address | None) -> None:
        if address is not None and (is_public(address) or self._is_allowed(address)):
            return
        if port == port_of(self._base_url) and (
            host == host_of(self._base_url) or address in self._own_addresses
        ):
            return
        raise NetworkRefusedError(
            f"The URL's host {host!r} is the private address {_shown(address)}, which is neither the connection's base URL "
            "nor in its allowed_networks: nothing was requested."
        )

    def _is_allowed(self, address: Address) -> bool:
        return any(
            meaning in network
            for meaning in (address, *embedded_addresses(address))
            for network in self._allowed
        )

    @cached_property
    def _own_addresses(self) -> frozenset[Address]:
        return frozenset(_resolved(host_of(self._base_url)))


def _resolved(host: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [address for *_, place in found if (address := address_of(str(place[0]))) is not None]


def _shown(address: Address | None) -> str:
    inside = (
        [str(meaning) for meaning in embedded_addresses(address) if meaning != address] if address else []
    )
    return f"{address} ({', '.join(inside)})" if inside else str(address)
