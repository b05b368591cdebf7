# SPDX-License-Identifier: Apache-2.0
"""Which certificates are trusted, and what the error says about an untrusted one."""

from __future__ import annotations

import shutil
import subprocess

import certifi
import pytest

from airflow_provider_getimg.api import certificates, errors
from airflow_provider_getimg.api.certificates import Certificates
from airflow_provider_getimg.api.client import GetimgClient
from tests.support.raw_servers import Proxy, RawServer, response, write_certificate

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("certificates") / "server.pem", "127.0.0.1", "api.test")


@pytest.fixture(scope="module")
def server(certificate):
    with RawServer(response(b"[]"), certificate) as server:
        yield server


@pytest.fixture(scope="module")
def folder(certificate, tmp_path_factory):
    """Return a certificate folder as OpenSSL reads it: each file is named after its subject's hash."""
    folder = tmp_path_factory.mktemp("hashed")
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl command to hash a certificate's name")
    name = subprocess.run(
        [openssl, "x509", "-hash", "-noout", "-in", certificate], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / f"{name}.0").write_bytes(certificate.read_bytes())
    return folder


def ask(url: str) -> None:
    with GetimgClient("sk_x", timeout=10, base_url=url) as client:
        assert client.list_models() == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificate_file_in_an_environment_variable_is_trusted(monkeypatch, server, certificate, name):
    monkeypatch.setenv(name, str(certificate))
    ask(server.url)


@pytest.mark.parametrize("name", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificate_folder_in_an_environment_variable_is_trusted(monkeypatch, server, folder, name):
    monkeypatch.setenv(name, f"/nowhere:{folder}" if name == "SSL_CERT_DIR" else str(folder))
    ask(server.url)


@pytest.mark.parametrize("first", range(3))
def test_first_nonempty_certificate_variable_takes_precedence(monkeypatch, server, certificate, first):
    names = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
    for name in names[:first]:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(names[first], str(certificate))
    for name in names[first + 1 :]:
        monkeypatch.setenv(name, "/nowhere")
    ask(server.url)


@pytest.mark.parametrize(
    ("name", "content", "rest"),
    [
        ("SSL_CERT_FILE", None, "a file of certificates in PEM format, got '{}': No such file or directory."),
        (
            "REQUESTS_CA_BUNDLE",
            None,
            "a file of certificates in PEM format, got '{}': No such file or directory.",
        ),
        (
            "CURL_CA_BUNDLE",
            "",
            "a file of certificates in PEM format, got '{}': no certificate can be read from it.",
        ),
        (
            "SSL_CERT_FILE",
            "no",
            "a file of certificates in PEM format, got '{}': no certificate can be read from it.",
        ),
        ("SSL_CERT_DIR", None, "a folder of certificates in PEM format, got '{}': there is no such folder."),
        ("SSL_CERT_DIR", "no", "a folder of certificates in PEM format, got '{}': there is no such folder."),
    ],
)
@pytest.mark.parametrize("base_url", ["https://api.test", "http://127.0.0.1:1"])
def test_unusable_certificate_variable_is_named_before_anything_is_sent(
    monkeypatch, tmp_path, name, content, rest, base_url
):
    path = tmp_path / "bundle"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    with pytest.raises(errors.ConnectionConfigError) as error:
        GetimgClient("sk_x", timeout=10, base_url=base_url)
    assert error.value.message == f"{name} must name {rest.format(path)}"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", None], ids=str)
def test_error_for_an_untrusted_certificate_names_the_ca_bundle(monkeypatch, tmp_path, server, name):
    looked_at = f"{certifi.where()}; SSL_CERT_FILE or REQUESTS_CA_BUNDLE can name another file"
    if name:
        bundle = write_certificate(tmp_path / "other.pem", "other.test")
        monkeypatch.setenv(name, str(bundle))
        looked_at = f"{name}={bundle}"
    with (
        GetimgClient("sk_x", timeout=10, base_url=server.url) as client,
        pytest.raises(errors.NoConnectionError) as error,
    ):
        client.list_models()
    assert str(error.value) == (
        f"No connection to {server.url} was made: its certificate was refused (self-signed certificate), checked "
        f"against {looked_at}. Nothing was billed."
    )


def test_error_for_an_untrusted_certificate_behind_a_proxy_names_the_proxy(server):
    with (
        Proxy(server.port) as proxy,
        GetimgClient(
            "sk_x", timeout=10, base_url="https://api.test", proxy=f"http://{proxy.address}"
        ) as client,
        pytest.raises(errors.NoConnectionError) as error,
    ):
        client.list_models()
    expected = f"through the proxy {proxy.address} (the connection's proxy): its certificate was refused"
    assert expected in str(error.value)


def test_default_certificates_are_loaded_once_and_only_for_https(monkeypatch, server, certificate):
    read = []
    original = certificates.ssl.create_default_context
    monkeypatch.setattr(
        certificates.ssl,
        "create_default_context",
        lambda **options: read.append(options) or original(cafile=str(certificate)),
    )
    with RawServer(response(b"[]")) as plain:
        ask(plain.url)
    assert read == []
    with GetimgClient("sk_x", timeout=10, base_url=server.url) as client:
        client.list_models()
        client.list_models()
    assert read == [{"cafile": certifi.where()}]


def test_str_of_the_certificates_names_the_ca_bundle_in_use():
    assert str(Certificates()).startswith(certifi.where())
