# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.settings import ClientSettings, checked_api_key, is_loopback


def test_empty_settings_use_the_defaults():
    assert ClientSettings.checked(None, None, None) == ClientSettings("https://api.getimg.ai", 300.0, None)
    assert ClientSettings.checked("", "", "") == ClientSettings("https://api.getimg.ai", 300.0, None)


def test_text_from_a_form_or_uri_is_parsed_and_the_proxy_password_is_hidden():
    settings = ClientSettings.checked(
        " https://proxy.test/getimg/ ", "12.5", "http://user:pw@proxy.test:3128"
    )
    assert settings.base_url == "https://proxy.test/getimg"
    assert settings.timeout == 12.5
    assert "pw" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "got"),
    [
        ("ftp://api.getimg.ai", ", got 'ftp://api.getimg.ai'"),
        ("https://h:port", ", got 'https://h:port'"),
        ("https://a..b", ", got 'https://a..b'"),
        ("https://", ""),
        ("//h", ""),
        ("api.getimg.ai", ""),
        ("Tq7cZk2kQv8mW1x", ""),
    ],
)
def test_invalid_base_url_is_rejected_and_quoted_only_if_it_cannot_be_a_key(url, got):
    with pytest.raises(ConnectionConfigError) as error:
        ClientSettings.checked(url, None, None)
    assert error.value.message == (
        "The base URL must start with https:// (or http://) and name a host, such as https://api.getimg.ai"
        f"{got}."
    )


@pytest.mark.parametrize(
    "url",
    [
        "sk_hidden",
        "sk_hidden@api.getimg.ai",
        "https://sk_hidden",
        "https://user:sk_hidden@api.getimg.ai",
        "https://api.getimg.ai/sk_hidden",
        "https://api.getimg.ai?key=hidden",
        "https://api.getimg.ai#hidden",
    ],
)
def test_credentials_in_the_base_url_are_rejected_and_not_shown(url):
    with pytest.raises(ConnectionConfigError, match="belongs in the password field") as error:
        ClientSettings.checked(url, None, None)
    assert "hidden" not in str(error.value)


def test_api_key_in_another_field_is_masked_in_the_error():
    for timeout, networks in (("sk_hidden", None), (None, ["sk_hidden"])):
        with pytest.raises(ConnectionConfigError, match=r"got '\*\*\*'\.") as error:
            ClientSettings.checked(None, timeout, None, networks)
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "networks",
    [
        ["198.18.0.0/15", "fd00::/8", "10.1.2.3"],
        "198.18.0.0/15, fd00::/8,10.1.2.3",
        " 198.18.0.0/15\nfd00::/8 10.1.2.3/32",
        '["198.18.0.0/15", "fd00::/8", "10.1.2.3"]',
    ],
    ids=["list", "commas", "spaces", "json"],
)
def test_allowed_networks_are_read_from_a_list_or_text(networks):
    settings = ClientSettings.checked(None, None, None, networks)
    assert list(map(str, settings.allowed_networks)) == ["198.18.0.0/15", "fd00::/8", "10.1.2.3/32"]


@pytest.mark.parametrize("networks", [None, "", [], "[]"], ids=repr)
def test_allowed_networks_are_empty_by_default(networks):
    assert ClientSettings.checked(None, None, None, networks).allowed_networks == ()


@pytest.mark.parametrize(
    ("networks", "got"),
    [
        ("gateway.internal", "'gateway.internal'"),
        ("10.0.0.1/8", "'10.0.0.1/8'"),
        ("10.0.0.0/33", "'10.0.0.0/33'"),
        ([10], "10"),
        (True, "True"),
        ([None], "None"),
        ({"a": 1}, "{'a': 1}"),
    ],
    ids=str,
)
def test_invalid_network_is_rejected_and_quoted(networks, got):
    with pytest.raises(ConnectionConfigError) as error:
        ClientSettings.checked(None, None, None, networks)
    assert error.value.message == (
        f"allowed_networks must be a list of networks such as 10.0.0.0/8 or fd00::/8, got {got}."
    )


@pytest.mark.parametrize(
    "timeout",
    ["soon", 0, -3, "-3", float("nan"), float("inf"), 1e10, 10**400, True, [1]],
    ids=lambda value: repr(value)[:9],
)
def test_invalid_timeout_is_rejected(timeout):
    with pytest.raises(
        ConnectionConfigError, match=r"^timeout must be a positive number of seconds, at most 86400, got"
    ):
        ClientSettings.checked(None, timeout, None)


@pytest.mark.parametrize(
    "proxy",
    ["proxy.test:3128", "ftp://user:secret@proxy.test", "http://:99", "http://p:99999", "http://p\x01.test"],
)
def test_invalid_proxy_is_rejected_without_showing_its_password(proxy):
    with pytest.raises(ConnectionConfigError, match=r"^The proxy must start with http://") as error:
        ClientSettings.checked(None, None, proxy)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", [None, "", "  \n"], ids=repr)
def test_missing_api_key_is_rejected(key):
    with pytest.raises(ConnectionConfigError, match=r"^The API key is missing: enter it in the password"):
        GetimgClient(key)


def test_white_space_around_the_api_key_is_stripped():
    assert checked_api_key(" sk_abc\n") == "sk_abc"


@pytest.mark.parametrize("key", ["sk_a\nb", "sk_a b", "sk_ä"], ids=repr)
def test_api_key_that_is_invalid_in_a_header_is_rejected_without_showing_it(key):
    with pytest.raises(ConnectionConfigError, match=r"position [45]") as error:
        checked_api_key(key)
    assert "sk_" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://localhost.example.com", False),
        ("https://api.getimg.ai", False),
        ("http://10.0.0.1", False),
    ],
)
def test_only_localhost_and_loopback_addresses_are_loopback(url, expected):
    assert is_loopback(url) is expected
