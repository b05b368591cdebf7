# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.api.connection_watch import Peer
from airflow_provider_getimg.api.errors import FileRefusedError
from airflow_provider_getimg.transfers.network_guard import NetworkGuard

PUBLIC = "https://1.1.1.1"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
    ],
)
@pytest.mark.parametrize("host", ["files.example.com", "xn--bcher-kva.example.com"])
def test_no_private_address_under_whatever_name(host, address):
    with pytest.raises(FileRefusedError, match=r"is the private address .*: nothing was requested\."):
        NetworkGuard(PUBLIC).check_peer(Peer(host, address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_the_internet_is_open(address):
    NetworkGuard(PUBLIC).check_peer(Peer("files.example.com", address))


def test_the_base_url_s_own_address_is_open_and_no_other():
    guard = NetworkGuard("http://127.0.0.1:8000")
    guard.check_peer(Peer("localhost", "127.0.0.1"))
    with pytest.raises(FileRefusedError):
        guard.check_peer(Peer("localhost", "127.0.0.2"))


def test_a_proxy_may_be_anywhere(monkeypatch):
    NetworkGuard(PUBLIC, "http://user:pw@proxy.internal:3128").check_peer(Peer("proxy.internal", "10.0.0.1"))
    monkeypatch.setenv("HTTPS_PROXY", "http://environment.internal:3128")
    NetworkGuard(PUBLIC).check_peer(Peer("environment.internal", "10.0.0.1"))


@pytest.mark.parametrize(
    ("base_url", "url", "allowed"),
    [
        (PUBLIC, "https://a.test/x", True),
        (PUBLIC, "http://a.test/x", False),
        (PUBLIC, "ftp://a.test/x", False),
        (PUBLIC, "file:///etc/passwd", False),
        (PUBLIC, "http://127.0.0.1/x", True),
        ("http://gateway.internal", "http://a.test/x", True),
    ],
)
def test_https_alone_but_where_plain_http_is_meant(base_url, url, allowed):
    guard = NetworkGuard(base_url)
    if allowed:
        guard.check_url(url)
    else:
        with pytest.raises(FileRefusedError, match="is not https"):
            guard.check_url(url)
