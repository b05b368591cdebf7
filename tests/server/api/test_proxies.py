# SPDX-License-Identifier: Apache-2.0
"""Which proxy a request uses, and how errors name a proxy that fails."""

from __future__ import annotations

import json

import httpx
import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.proxies import Proxies
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.settings import http_client
from tests.support.raw_servers import Proxy, RawServer, response, write_certificate

REQUEST = ImageRequest(model="m", prompt="p")
PAID = response(
    json.dumps({"id": "req-1", "status": "completed", "data": [{"url": "https://a.test/f"}]}).encode(),
    "Content-Type: application/json",
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch) -> None:
    for name in ("http", "https", "all", "no", "cloudsql"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


def chosen(url: str, configured: str | None = None) -> str | None:
    proxy = Proxies(configured).of(httpx.URL(url))
    return None if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({"HTTPS_PROXY": "10.0.0.5:3128"}, "https://a.test", "10.0.0.5:3128 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://u:pw@p.test"}, "https://a.test", "p.test:80 (HTTPS_PROXY)"),
        ({"https_proxy": "https://p.test"}, "https://a.test", "p.test:443 (https_proxy)"),
        (
            {"HTTPS_PROXY": "http://one", "https_proxy": "http://two"},
            "https://a.test",
            "two:80 (https_proxy)",
        ),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128"}, "https://a.test", "[fd00::1]:3128 (HTTPS_PROXY)"),
        ({"HTTPS_PROXY": "http://p.test"}, "http://a.test", None),
        ({"ALL_PROXY": "p.test:1"}, "http://a.test", "p.test:1 (ALL_PROXY)"),
        ({"ALL_PROXY": "p.test:1", "HTTP_PROXY": "q.test:2"}, "http://a.test", "q.test:2 (HTTP_PROXY)"),
        ({"HTTP_PROXY": ""}, "http://a.test", None),
        ({"CLOUDSQL_PROXY": "p.test:1"}, "https://a.test", None),
        ({"HTTPS_PROXY": "ftp://broken", "NO_PROXY": "*"}, "https://a.test", None),
    ],
    ids=str,
)
def test_proxy_is_chosen_from_the_environment(monkeypatch, variables, url, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert chosen(url) == expected


def test_connection_proxy_overrides_the_environment_and_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://broken")
    monkeypatch.setenv("NO_PROXY", "*")
    assert chosen("https://a.test", "http://u:pw@p.test:8") == "p.test:8 (the connection's proxy)"
    assert "pw" not in repr(Proxies("http://u:pw@p.test:8").of(httpx.URL("https://a.test")))


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "https://a.test", True),
        ("a.test", "https://a.test", True),
        ("A.Test", "https://a.test.", True),
        ("a.test", "https://b.a.test", True),
        (".a.test", "https://a.test", True),
        (".a.test", "https://b.a.test", True),
        ("*.a.test", "https://b.a.test", True),
        ("a.test", "https://aa.test", False),
        ("b.test a.test", "https://a.test", True),
        ("b.test, a.test", "https://a.test", True),
        ("a.test:443", "https://a.test", True),
        ("a.test:8443", "https://a.test", False),
        ("http://a.test", "https://a.test", False),
        ("https://a.test", "https://a.test", True),
        ("all://a.test", "https://a.test", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.7/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3:8443", "https://10.1.2.3:8443", True),
        ("10.1.2.3:8443", "https://10.1.2.3", False),
        ("1.2.3", "https://10.1.2.3", False),
        ("[::1]", "https://[::1]", True),
        ("::1", "https://[::1]", True),
        ("[::1]:8443", "https://[::1]:8443", True),
        ("[::1]:8443", "https://[::1]", False),
        ("0:0:0:0:0:0:0:1", "https://[::1]", True),
        ("fd00::/8", "https://[fd12::1]", True),
        ("[fd00::/8]", "https://[fd12::1]", True),
        ("[fd00::]/8", "https://[fd12::1]", True),
        ("fd00::/8", "https://[fe12::1]", False),
        ("fd00::/8", "https://10.1.2.3", False),
        # Invalid entries are ignored.
        ("fd00::/999,[::1,http://,:,a.test:port,%zz,/,.", "https://a.test", False),
        ("fd00::/999,[::1,a.test", "https://a.test", True),
    ],
)
def test_no_proxy_accepts_common_notations_and_ignores_invalid_entries(monkeypatch, entry, url, direct):
    monkeypatch.setenv("HTTPS_PROXY", "http://p.test:3128")
    monkeypatch.setenv("NO_PROXY", entry)
    assert (chosen(url) is None) is direct
    GetimgClient("sk_x").close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "ftp://u:secret@p.test"),
        ("https_proxy", "http://"),
        ("HTTP_PROXY", "p.test:99999"),
        ("ALL_PROXY", "http://a..b:1"),
        ("HTTPS_PROXY", "http://p\x01.test"),
    ],
)
def test_invalid_proxy_variable_is_named_before_anything_is_sent(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConnectionConfigError) as error:
        GetimgClient("sk_x")
    assert error.value.message == (
        f"{name} must start with http://, https:// or socks5:// and name a host, such as "
        "http://proxy.example.com:3128."
    )


@pytest.mark.parametrize("how", ["environment", "connection"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_api_calls_and_downloads_use_the_same_proxy(monkeypatch, tmp_path, encrypted, how):
    certificate = write_certificate(tmp_path / "pem", "api.getimg.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    scheme = "https" if encrypted else "http"
    with RawServer(PAID, certificate if encrypted else None) as server, Proxy(server.port) as proxy:
        if how == "environment":
            monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.address)
        configured = f"http://{proxy.address}" if how == "connection" else None
        base_url = f"{scheme}://api.getimg.test"
        with (
            GetimgClient("sk_x", timeout=10, base_url=base_url, proxy=configured) as client,
            http_client(headers={}, proxy=configured) as downloads,
        ):
            assert client.generate_image(REQUEST).id == "req-1"
            assert downloads.get(f"{base_url}/f").status_code == 200
        assert proxy.visits == server.visits == 2
        assert proxy.heads[0].startswith(
            "CONNECT api.getimg.test:443 "
            if encrypted
            else "POST http://api.getimg.test/v2/images/generations "
        )
        # A tunnel hides the API key from the proxy; plain http cannot.
        assert ("sk_x" in "".join(proxy.heads)) is not encrypted


def test_host_in_no_proxy_is_reached_without_the_proxy(monkeypatch):
    with RawServer(PAID) as server, Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("NO_PROXY", "[::1],fd00::/8,127.0.0.0/8")
        with GetimgClient("sk_x", timeout=10, base_url=server.url) as client:
            client.generate_image(REQUEST)
        assert (proxy.visits, server.visits) == (0, 1)


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "502 \x1b[31mbad"])
def test_a_proxy_that_refuses_to_connect_is_named_without_its_password(status):
    with Proxy(refusal=response(status=status)) as proxy:
        url = f"http://user:secret@{proxy.address}"
        with (
            GetimgClient("sk_x", timeout=10, base_url="https://api.test", proxy=url) as client,
            pytest.raises(errors.NoConnectionError) as error,
        ):
            client.generate_image(REQUEST)
    assert str(error.value) == (
        f"No connection to https://api.test was made: the proxy {proxy.address} (the connection's proxy) refused it: "
        f"{status.replace(chr(27), '')}. Nothing was billed."
    )


def test_unreachable_proxy_is_named_in_the_error(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:1")
    with (
        GetimgClient("sk_x", timeout=10, base_url="https://api.test") as client,
        pytest.raises(
            errors.NoConnectionError,
            match=r"made: through the proxy 127\.0\.0\.1:1 \(HTTPS_PROXY\): .*refused",
        ),
    ):
        client.generate_image(REQUEST)


def test_proxy_that_closes_the_connection_is_named_in_the_error(monkeypatch):
    with Proxy(refusal=b"") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        with (
            GetimgClient("sk_x", timeout=10, base_url="https://api.test") as client,
            pytest.raises(
                errors.NoConnectionError, match=rf"made: through the proxy {proxy.address} \(HTTPS_PROXY\)"
            ),
        ):
            client.generate_image(REQUEST)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        pytest.param(
            response(b"<html>", status="407 Proxy Authentication Required"),
            "The proxy {proxy} (HTTP_PROXY) refused the request (407): check its user and password. Nothing was billed.",
            id="the proxy requires a password",
        ),
        pytest.param(
            response(b"<h1>blocked</h1>", status="403 Forbidden"),
            "getimg.ai refused the request (403): '<h1>blocked</h1>'. It came through the proxy {proxy} (HTTP_PROXY). "
            "Nothing was billed.",
            id="an error page comes through it",
        ),
    ],
)
def test_refusal_through_a_plain_http_proxy_names_the_proxy_and_nothing_is_billed(
    monkeypatch, refusal, message
):
    with Proxy(refusal=refusal) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        with (
            GetimgClient("sk_x", timeout=10, base_url="http://api.test") as client,
            pytest.raises(errors.RequestRefusedError) as error,
        ):
            client.generate_image(REQUEST)
    assert str(error.value) == message.format(proxy=proxy.address)
