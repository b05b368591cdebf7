# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.api.settings import ClientSettings, checked_api_key, is_loopback


def test_empty_settings_mean_the_defaults():
    assert ClientSettings.checked(None, None, None) == ClientSettings("https://api.getimg.ai", 300.0, None)
    assert ClientSettings.checked("", "", "") == ClientSettings("https://api.getimg.ai", 300.0, None)


def test_settings_are_read_as_a_form_or_a_uri_gives_them():
    settings = ClientSettings.checked(
        " https://proxy.test/getimg/ ", "12.5", "http://user:pw@proxy.test:3128"
    )
    assert settings.base_url == "https://proxy.test/getimg"
    assert settings.timeout == 12.5
    assert "pw" not in repr(settings)


@pytest.mark.parametrize("url", ["api.getimg.ai", "ftp://api.getimg.ai", "https://", "https://h:port", "//h"])
def test_a_base_url_that_is_none_is_named_with_what_is_allowed(url):
    with pytest.raises(ConnectionConfigError, match=r"^The base URL is '.*': it must start with https://"):
        ClientSettings.checked(url, None, None)


def test_a_base_url_holds_no_credentials_and_the_message_does_not_show_them():
    with pytest.raises(ConnectionConfigError, match="password field") as error:
        ClientSettings.checked("https://user:sk_hidden@api.getimg.ai", None, None)
    assert "sk_hidden" not in str(error.value)


@pytest.mark.parametrize(
    "timeout", ["soon", 0, -3, "-3", float("nan"), float("inf"), 1e10, True, [1]], ids=repr
)
def test_a_timeout_that_is_no_positive_number_is_named(timeout):
    with pytest.raises(ConnectionConfigError, match=r"^The timeout is .*: a positive number of seconds"):
        ClientSettings.checked(None, timeout, None)


@pytest.mark.parametrize("proxy", ["proxy.test:3128", "ftp://user:secret@proxy.test", "http://:99"])
def test_a_proxy_that_is_none_is_refused_without_showing_its_password(proxy):
    with pytest.raises(ConnectionConfigError, match=r"^The proxy is no URL") as error:
        ClientSettings.checked(None, None, proxy)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", [None, "", "  \n"], ids=repr)
def test_a_missing_key_is_named(key):
    with pytest.raises(ConnectionConfigError, match=r"^The API key is missing: put it into the password"):
        GetimgClient(key)


def test_white_space_around_a_pasted_key_is_dropped():
    assert checked_api_key(" sk_abc\n") == "sk_abc"


@pytest.mark.parametrize("key", ["sk_a\nb", "sk_a b", "sk_ä"], ids=repr)
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key):
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
def test_loopback_is_this_machine_alone(url, expected):
    assert is_loopback(url) is expected
