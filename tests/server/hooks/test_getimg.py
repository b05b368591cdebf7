# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from airflow_provider_getimg.api.errors import ConnectionConfigError
from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.version_compat import AIRFLOW


@pytest.fixture
def connect(monkeypatch):
    """Return a function that defines ``getimg_default`` from a dict or a URI, and returns its hook."""

    def define(connection: dict | str) -> GetimgHook:
        value = (
            connection if isinstance(connection, str) else json.dumps({"conn_type": "getimg"} | connection)
        )
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", value)
        return GetimgHook()

    return define


def test_json_connection_sets_the_base_url_timeout_and_allowed_networks(connect):
    hook = connect(
        {
            "password": "sk_json",
            "host": "https://gateway.test/getimg/",
            "extra": {"timeout": 42, "proxy": None, "allowed_networks": "10.0.0.0/8"},
        }
    )
    assert list(map(str, hook.settings.allowed_networks)) == ["10.0.0.0/8"]
    assert hook.client.base_url == "https://gateway.test/getimg"
    assert hook.client.timeout == 42.0


@pytest.mark.parametrize(
    ("uri", "base_url", "timeout"),
    [
        ("getimg://:sk_uri@", "https://api.getimg.ai", 300.0),
        (
            '{"conn_type": "getimg", "password": "sk", "host": "https://a.test", "port": 0}',
            "https://a.test",
            300.0,
        ),
        ("getimg://:sk_uri@/?timeout=60", "https://api.getimg.ai", 60.0),
        ("getimg://:sk_uri@http%3A%2F%2F127.0.0.1:8000/?timeout=5", "http://127.0.0.1:8000", 5.0),
        ("getimg://:sk_uri@http%3A%2F%2F127.0.0.1%3A8000", "http://127.0.0.1:8000", 300.0),
    ],
)
def test_uri_or_json_connection_sets_the_base_url_and_timeout(connect, uri, base_url, timeout):
    client = connect(uri).client
    assert (client.base_url, client.timeout) == (base_url, timeout)


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        ({}, "Connection 'getimg_default': The API key is missing: enter it in the password field."),
        ({"password": "***"}, "The API key is Airflow's mask for it (***), not the key: enter it again."),
        (
            {"password": "sk_x", "host": "api.getimg.ai"},
            "The base URL must start with https:// (or http://) and name a host",
        ),
        (
            {"password": "sk_x", "extra": {"timeout": "soon"}},
            "timeout must be a positive number of seconds, at most 86400, got 'soon'.",
        ),
        (
            {"password": "sk_x", "extra": {"timeout": 0}},
            "timeout must be a positive number of seconds, at most 86400, got 0.",
        ),
        ({"password": "sk_x", "extra": {"proxy": "proxy:3128"}}, "The proxy must start with http://"),
        (
            {"password": "sk_x", "extra": {"allowed_networks": "10/8"}},
            "allowed_networks must be a list of networks",
        ),
        (
            {"password": "sk_x", "extra": {"timeout": 60, "time_out": 60}},
            "The extra field may only contain timeout, proxy, allowed_networks, state_folder, got 'time_out'.",
        ),
        ({"password": "sk_x", "extra": "{'timeout': 60}"}, "The extra field must be a JSON object."),
        ({"password": "sk_x", "extra": "timeout=60"}, "The extra field must be a JSON object."),
        ({"password": "sk_x", "extra": ["timeout"]}, "The extra field must be a JSON object."),
    ],
    ids=[
        "no key",
        "mask",
        "no scheme",
        "no number",
        "not positive",
        "proxy",
        "network",
        "unknown name",
        "no json",
        "a text",
        "list",
    ],
)
def test_invalid_connection_is_rejected_with_a_reason_that_omits_the_key(connect, connection, sentence):
    hook = connect(connection)
    if AIRFLOW < (3, 2) and "JSON object" in sentence:
        # Airflow itself treats such a connection as missing.
        sentence = "does not exist, or can't be read"
    with pytest.raises(ConnectionConfigError) as error:
        hook.get_conn()
    assert str(error.value).startswith("Connection 'getimg_default'")
    assert sentence in str(error.value)
    assert "sk_x" not in str(error.value)


def test_invalid_state_folder_is_rejected_on_every_access_and_by_the_test_button(connect):
    hook = connect({"password": "sk_x", "extra": {"state_folder": "a-bucket/state"}})
    sentence = (
        "Connection 'getimg_default': state_folder must be s3://bucket/prefix, or s3://aws_conn_id@bucket/prefix, got "
        "'a-bucket/state'. Nothing was billed."
    )
    for attribute in ("state_folder", "settings", "client"):
        with pytest.raises(ConnectionConfigError) as error:
            getattr(hook, attribute)
        assert str(error.value) == sentence
    assert hook.test_connection() == (False, sentence.removeprefix("Connection 'getimg_default': "))


@pytest.mark.parametrize("attribute", ["settings", "client", "state_folder"])
def test_missing_connection_is_named_in_the_error(attribute):
    with pytest.raises(ConnectionConfigError) as error:
        getattr(GetimgHook("nowhere"), attribute)
    assert str(error.value) == (
        "Connection 'nowhere' does not exist, or can't be read: create it with the type 'getimg', or name another "
        "one in getimg_conn_id. Nothing was billed."
    )


@pytest.mark.parametrize(
    ("uri", "timeout"),
    [
        ("getimg://:sk_uri@/?__extra__=%7B%22timeout%22%3A+60%7D", 60.0),
        ("getimg://:sk_uri@/?timeout=60&allowed_networks=10.0.0.0%2F8", 60.0),
        ('{"conn_type": "getimg", "password": "sk", "extra": "{\\"timeout\\": 60}"}', 60.0),
        ('{"conn_type": "getimg", "password": "sk", "extra": {}}', 300.0),
        ('{"conn_type": "getimg", "password": "sk", "extra": ""}', 300.0),
    ],
    ids=["__extra__", "query", "text", "empty object", "empty"],
)
def test_extra_is_read_in_every_form_that_airflow_writes(connect, uri, timeout):
    assert connect(uri).settings.timeout == timeout


@pytest.mark.parametrize(
    ("host", "base_url"),
    [
        ("https://a.test", "https://a.test:8443"),
        ("https://a.test/getimg/", "https://a.test:8443/getimg"),
    ],
)
def test_port_follows_the_host_name(connect, host, base_url):
    assert connect({"host": host, "port": 8443}).settings.base_url == base_url


def test_port_zero_is_ignored(connect):
    assert connect({"host": "https://a.test", "port": 0}).settings.base_url == "https://a.test"


def test_settings_can_be_read_without_an_api_key(connect):
    assert connect({"extra": {"timeout": "7"}}).settings.timeout == 7.0


def test_connection_test_reports_the_number_of_models(connect, simulator):
    hook = connect({"password": simulator.api_key, "host": simulator.url})
    with GetimgHook() as other:
        models = len(other.client.list_models())
    assert hook.test_connection() == (
        True,
        f"{simulator.url} accepts the key, which has access to {models} models.",
    )
    assert not simulator.ledger


def test_connection_test_shows_the_api_error_message(connect, simulator):
    ok, message = connect({"password": "sk_wrong", "host": simulator.url}).test_connection()
    assert not ok
    assert message.startswith("getimg.ai refused the request (401 invalid_api_key): ")
    assert "sk_wrong" not in message


def test_connection_test_shows_what_is_wrong_with_the_connection(connect):
    assert connect({}).test_connection() == (
        False,
        "The API key is missing: enter it in the password field. Nothing was billed.",
    )


def test_a_closed_hook_can_be_used_again(connect, simulator):
    hook = connect({"password": simulator.api_key, "host": simulator.url})
    with hook:
        first = hook.client
    assert hook.client is not first
    assert hook.client.list_models()
    hook.close()
    hook.close()


def test_unencrypted_base_url_logs_a_warning_unless_it_is_loopback(connect, capsys):
    assert connect({"password": "sk_x", "host": "http://gateway.test"}).client
    assert "without encryption" in capsys.readouterr().out
    assert connect({"password": "sk_x", "host": "http://127.0.0.1:9"}).client
    assert "without encryption" not in capsys.readouterr().out
