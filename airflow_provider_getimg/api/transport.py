# SPDX-License-Identifier: Apache-2.0
"""An httpx transport that chooses proxies and certificates itself, and explains failures with them."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import httpx

from airflow_provider_getimg.api.certificates import Certificates
from airflow_provider_getimg.api.proxies import Proxies, Proxy

#: Trace event that reports a request's proxy (``info["proxy"]``) before a connection is made.
ROUTE_EVENT = "getimg.route"
#: Trace event before a request goes out on a reused connection; it carries the peer.
REUSE_EVENT = "getimg.reuse"
#: Response extension that names the proxy that the response came through.
PROXY_EXTENSION = "getimg_proxy"

# An http:// server needs no certificate. This context rejects all of them, in case one is checked after all.
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Transport(httpx.BaseTransport):
    """
    Sends each request over its own connection, directly or through a proxy.

    :param proxy: URL of the connection's proxy, if it has one.
    :raises ConnectionConfigError: The environment's proxies or certificates can't be used.
    """

    _limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    def __init__(self, proxy: str | None = None) -> None:
        self._proxies = Proxies(proxy)
        self._certificates = Certificates()
        self._lock = threading.Lock()
        self._transports: dict[tuple[Proxy | None, bool], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        proxy = self._proxies.of(request.url)
        if trace := request.extensions.get("trace"):
            trace(ROUTE_EVENT, {"proxy": proxy})
        try:
            response = self._send_through(request, proxy)
        except httpx.TransportError as error:
            raise type(error)(self._describe_error(error, proxy), request=request) from error
        if proxy is not None:
            response.extensions[PROXY_EXTENSION] = str(proxy)
        if not _is_parsable_location(request.url, response.headers.get("location")):
            # httpx parses it even when not following redirects, and would lose the response over it.
            del response.headers["location"]
        return response

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()

    def _send_through(self, request: httpx.Request, proxy: Proxy | None) -> httpx.Response:
        return self._transport(proxy, request.url.scheme == "https").handle_request(request)

    def _transport(self, proxy: Proxy | None, is_encrypted: bool) -> httpx.HTTPTransport:
        with self._lock:
            key = (proxy, is_encrypted)
            if key not in self._transports:
                self._transports[key] = self._build(proxy, is_encrypted)
            return self._transports[key]

    def _build(self, proxy: Proxy | None, is_encrypted: bool) -> httpx.HTTPTransport:
        options: dict[str, Any] = {}
        if proxy is not None:
            to_proxy = self._certificates.context if proxy.url.startswith("https") else None
            options["proxy"] = httpx.Proxy(proxy.url, ssl_context=to_proxy)
        return httpx.HTTPTransport(
            verify=self._certificates.context if is_encrypted else _NO_CERTIFICATES,
            trust_env=False,
            limits=self._limits,
            **options,
        )

    def _describe_error(self, error: httpx.TransportError, proxy: Proxy | None) -> str:
        """Describe which proxy and which certificates a failed request used."""
        text = str(error) or type(error).__name__
        if refusal := _certificate_refusal(error):
            text = f"its certificate was refused ({refusal}), checked against {self._certificates}"
        if proxy is None:
            return text
        if isinstance(error, httpx.ProxyError):
            return f"the proxy {proxy} refused it: {text}"
        return f"through the proxy {proxy}: {text}"


def _certificate_refusal(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message.rstrip(".")
        cause = cause.__cause__ or cause.__context__
    return None


def _is_parsable_location(url: httpx.URL, location: str | None) -> bool:
    if location is None:
        return True
    try:
        target = httpx.URL(location)
        if target.scheme and not target.host:
            target = target.copy_with(host=url.host)
        url.join(target).netloc.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        return False
    return True
