# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ipaddress
import socket

import pytest

from airflow_provider_getimg.api.connection_watch import ConnectionWatch, Peer
from airflow_provider_getimg.api.errors import FileRefusedError
from airflow_provider_getimg.api.settings import ClientSettings, http_client
from airflow_provider_getimg.s3.addresses import address_of, is_public
from airflow_provider_getimg.s3.network_guard import NetworkGuard
from tests.support.raw_servers import Proxy, RawServer, response

PUBLIC = "https://1.1.1.1"
FILE = response(b"bytes")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.fixture
def resolve(monkeypatch):
    """Return a dict to fill with host names and the addresses that they resolve to."""
    names: dict[str, list[str]] = {}
    original = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        found = names.get(host)
        if found is None:
            return original(host, port, *args, **kwargs)
        return [entry for address in found for entry in original(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def fetch(guard: NetworkGuard, url: str, proxy: str | None = None) -> bytes:
    """Return a body, downloaded with the checks of a transfer."""
    guard.check_url(url)
    watch = ConnectionWatch("GET", 10, guard.check_peer)
    with (
        http_client(headers={}, proxy=proxy) as client,
        watch,
        client.stream("GET", url, extensions=watch.extensions, timeout=5) as response,
    ):
        return response.read()


NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a00:1",
    "64:ff9b:1:a00:0:100::",
    "64:ff9b:1:a00:0:100:808:808",
    "64:ff9b:2::1",
    "100::1",
    "2001::1",
    "2001:0:a00:1::",
    "2001:0:808:808::f5ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "2002:7f00:1::1",
    "2a00:1450::5efe:a00:1",
    "2a00:1450::200:5efe:a00:1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
ON_THE_INTERNET = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "198.20.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "64:ff9b:1::808:808",
    "2002:808:808::1",
    "2001:0:808:808::f7f7:f7f7",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_private_address_is_rejected_whatever_the_host_name(address):
    with pytest.raises(FileRefusedError, match=r"is the private address .*: nothing was requested\."):
        NetworkGuard(PUBLIC).check_peer(Peer("files.example.com", 443, address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_url_with_a_private_address_is_rejected_before_connecting(address):
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(FileRefusedError, match="is the private address"):
        NetworkGuard(PUBLIC).check_url(f"https://{host.replace('%eth0', '')}/f")


@pytest.mark.parametrize("address", ON_THE_INTERNET)
def test_public_address_is_accepted(address):
    NetworkGuard(PUBLIC).check_peer(Peer("files.example.com", 443, address))
    NetworkGuard(PUBLIC).check_url(f"https://{f'[{address}]' if ':' in address else address}/f")


@pytest.mark.parametrize("host", ["127.1", "0x7f.0.0.1", "2130706433", "[::ffff:7f00:1]", "127.0.0.1."])
def test_loopback_address_is_rejected_in_every_notation(host):
    with pytest.raises(FileRefusedError, match=r"is the private address 127\.0\.0\.1"):
        NetworkGuard(PUBLIC).check_url(f"https://{host}/f")


def test_is_public_never_raises_and_a_host_name_is_not_an_address():
    for number in range(0, 2**32, 65_521 * 61):
        is_public(ipaddress.IPv4Address(number))
    for number in range(0, 2**128, 2**128 // 5_003):
        is_public(ipaddress.IPv6Address(number))
    assert address_of("files.example.com") is None


def test_error_shows_the_ipv4_address_embedded_in_an_ipv6_address():
    with pytest.raises(FileRefusedError, match=r"is the private address 64:ff9b::a00:1 \(10\.0\.0\.1\),"):
        NetworkGuard(PUBLIC).check_peer(Peer("files.example.com", 443, "64:ff9b::a00:1"))


def test_no_connection_is_made_to_a_rejected_address():
    with RawServer(FILE) as server, RawServer(FILE) as base:
        guard = NetworkGuard(base.url)
        with pytest.raises(FileRefusedError):
            fetch(guard, f"http://127.0.0.1:{server.port}/f")
        with pytest.raises(FileRefusedError):
            fetch(guard, f"http://localhost:{server.port}/f")
        assert (server.visits, base.visits) == (0, 0)


def test_name_that_rebinds_to_a_private_address_receives_no_request(resolve, monkeypatch):
    with RawServer(FILE) as server:
        resolve["rebinding.test"] = ["8.8.8.8"]
        guard = NetworkGuard(PUBLIC)
        checked = []

        def check(peer: Peer) -> None:
            checked.append(peer.address)
            resolve["rebinding.test"] = ["127.0.0.1"]
            guard.check_peer(peer)

        watch = ConnectionWatch("GET", 10, check)
        with (
            http_client(headers={}) as client,
            watch,
            pytest.raises(FileRefusedError),
            client.stream("GET", f"http://rebinding.test:{server.port}/f", extensions=watch.extensions),
        ):
            pass
        assert checked == ["8.8.8.8", "127.0.0.1"]
        assert server.heads == []


def test_private_base_url_is_accepted_only_at_its_own_address_and_port():
    with RawServer(FILE) as base:
        guard = NetworkGuard(base.url)
        assert fetch(guard, f"{base.url}/f") == b"bytes"
        assert fetch(guard, f"http://localhost:{base.port}/f") == b"bytes"
    for address, port in (("127.0.0.2", base.port), ("127.0.0.1", base.port + 1), ("127.0.0.1", 80)):
        with pytest.raises(FileRefusedError):
            guard.check_peer(Peer("localhost", port, address))


def test_base_url_host_may_resolve_to_any_address_on_its_own_port(resolve):
    resolve["api.test"] = ["198.18.0.5"]
    guard = NetworkGuard("https://api.test")
    guard.check_peer(Peer("api.test", 443, "198.18.0.9"))
    guard.check_peer(Peer("other.test", 443, "198.18.0.5"))
    for peer in (Peer("api.test", 8443, "198.18.0.9"), Peer("other.test", 443, "198.18.0.9")):
        with pytest.raises(FileRefusedError):
            guard.check_peer(peer)


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ("198.18.0.0/15", "198.18.0.5", True),
        ("198.18.0.0/15", "198.20.0.5", True),
        ("198.18.0.0/15", "10.0.0.1", False),
        ("10.0.0.0/8", "64:ff9b::a00:1", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("64:ff9b::/96", "64:ff9b::a00:1", True),
        ("fd00::/8", "fd00::1", True),
        ("fd00::/8", "10.0.0.1", False),
        ("", "10.0.0.1", False),
    ],
)
def test_private_address_is_accepted_only_in_an_allowed_network(networks, address, allowed):
    settings = ClientSettings.checked(PUBLIC, None, None, networks)
    guard = NetworkGuard(settings.base_url, settings.proxy, settings.allowed_networks)
    url = f"https://{f'[{address}]' if ':' in address else address}:8443/f"
    if allowed:
        guard.check_url(url)
        guard.check_peer(Peer("files.test", 8443, address))
        return
    for check in (lambda: guard.check_url(url), lambda: guard.check_peer(Peer("files.test", 8443, address))):
        with pytest.raises(FileRefusedError, match="nor in its allowed_networks"):
            check()


def test_private_proxy_is_accepted_and_decides_where_to_connect(monkeypatch):
    with RawServer(FILE) as server, Proxy(server.port) as proxy:
        base_url = "http://1.1.1.1"
        url = "http://files.test/f"
        assert (
            fetch(NetworkGuard(base_url, f"http://{proxy.address}"), url, f"http://{proxy.address}")
            == b"bytes"
        )
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        assert fetch(NetworkGuard(base_url), url) == b"bytes"
        assert proxy.visits == 2


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "CLOUDSQL_PROXY", "NO_PROXY"])
def test_loopback_url_is_rejected_even_if_a_proxy_variable_names_its_host(monkeypatch, variable):
    with Proxy() as proxy, RawServer(FILE) as other:
        monkeypatch.setenv(variable, f"http://{proxy.address}" if variable != "NO_PROXY" else "127.0.0.1")
        guard = NetworkGuard("http://1.1.1.1")
        for port in (proxy.port, other.port):
            for host in ("127.0.0.1", "localhost"):
                with pytest.raises(FileRefusedError):
                    fetch(guard, f"http://{host}:{port}/f")
        assert (proxy.visits, other.visits) == (0, 0)


def test_url_with_the_host_name_of_a_private_proxy_is_rejected(monkeypatch, resolve):
    resolve["proxy.internal"] = ["10.0.0.1"]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.internal:3128")
    with pytest.raises(FileRefusedError, match=r"'proxy\.internal' is the private address"):
        NetworkGuard(PUBLIC).check_url("https://proxy.internal/f")


def test_url_of_a_proxy_that_the_request_does_not_use_is_rejected(monkeypatch):
    with RawServer(FILE) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{server.port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        guard = NetworkGuard("http://1.1.1.1")
        with pytest.raises(FileRefusedError):
            fetch(guard, f"http://127.0.0.1:{server.port}/f")
        assert server.visits == 0


def test_blocked_file_host_is_rejected_before_the_payment(resolve, monkeypatch):
    resolve["api.getimg.ai"] = ["198.18.0.5"]
    resolve["gateway.test"] = ["10.0.0.1"]
    behind_a_gateway = NetworkGuard("https://gateway.test")
    with pytest.raises(FileRefusedError, match=r"'api.getimg.ai' is the private address 198\.18\.0\.5"):
        behind_a_gateway.check_before_payment()
    # Accepted: the base URL's own host, an allowed network, a simulator, a proxy, and a public address.
    NetworkGuard("https://api.getimg.ai").check_before_payment()
    networks = ClientSettings.checked(None, None, None, "198.18.0.0/15").allowed_networks
    NetworkGuard("https://gateway.test", None, networks).check_before_payment()
    NetworkGuard("http://127.0.0.1:8989").check_before_payment()
    NetworkGuard("https://gateway.test", "http://p.test").check_before_payment()
    resolve["api.getimg.ai"] = ["8.8.8.8"]
    behind_a_gateway.check_before_payment()


@pytest.mark.parametrize(
    ("base_url", "url", "allowed"),
    [
        (PUBLIC, "https://a.test/x", True),
        (PUBLIC, "HTTPS://A.TEST/x", True),
        (PUBLIC, "http://a.test/x", False),
        (PUBLIC, "ftp://a.test/x", False),
        (PUBLIC, "file:///etc/passwd", False),
        (PUBLIC, "/etc/passwd", False),
        (PUBLIC, "", False),
        ("http://gateway.internal", "http://a.test/x", True),
    ],
)
def test_only_https_is_accepted_unless_the_base_url_is_plain_http(base_url, url, allowed):
    guard = NetworkGuard(base_url)
    if allowed:
        guard.check_url(url)
    else:
        with pytest.raises(FileRefusedError, match="is not https"):
            guard.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://[",
        "https://h:port/",
        "https://a..b/",
        "https://%31%32%37.0.0.1/",
        "https://",
        "https://0177.0.0.1/",
        "https://a\x00b/?sig=secret",
    ],
)
def test_invalid_url_is_rejected_and_shown_without_secrets(url):
    with pytest.raises(FileRefusedError, match=r"is invalid: it was not requested\.") as error:
        NetworkGuard(PUBLIC).check_url(url)
    assert "secret" not in str(error.value)
