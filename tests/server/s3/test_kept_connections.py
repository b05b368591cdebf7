# SPDX-License-Identifier: Apache-2.0
"""Which connections downloads reuse, and what happens to a download when the server has closed one."""

from __future__ import annotations

import logging
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from airflow_provider_getimg.api.errors import DownloadError, FileRefusedError, NetworkRefusedError
from airflow_provider_getimg.api.settings import ClientSettings
from airflow_provider_getimg.s3 import network_guard
from airflow_provider_getimg.s3.addresses import address_of
from airflow_provider_getimg.s3.download import Deadline, Downloads
from airflow_provider_getimg.s3.plan import KnownMedia, TransferItem
from tests.support.raw_servers import Proxy, RawServer, write_certificate

if TYPE_CHECKING:
    import socket

LOG = logging.getLogger(__name__)
FILE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 400 + b"\xff\xd9"


@pytest.fixture(autouse=True)
def trust(monkeypatch, certificate) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    names = ("127.0.0.1", "localhost", "files.test")
    return write_certificate(tmp_path_factory.mktemp("certificates") / "server.pem", *names)


def response(body: bytes = FILE, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", body])


class FileServer(RawServer):
    """
    Serves several requests over each TLS connection.

    :param leaves: Close a connection, without announcing it, after this number of responses.
    :param rude: Close it only once the next request is in flight.
    """

    def __init__(self, certificate, content=None, *, leaves: int = 0, rude: bool = False) -> None:
        super().__init__(response() if content is None else content, certificate)
        self._leaves = leaves
        self._rude = rude

    def serve(self, visitor: socket.socket) -> None:
        visitor = self._tls.wrap_socket(visitor, server_side=True)
        responses = 0
        while True:
            if responses and responses == self._leaves and self._rude:
                self.read(visitor)
                return
            if responses and responses == self._leaves:
                return
            self.read(visitor)
            visitor.sendall(self.response)
            responses += 1
            if b"Connection: close" in self.response:
                return


def downloads(server: RawServer, concurrency: int = 1, proxy: str | None = None, timeout: float = 10):
    settings = ClientSettings(server.url, timeout=timeout, proxy=proxy)
    return Downloads(settings, "Make it again.", max_bytes=10**8, concurrency=concurrency, log=LOG)


def fetch(session: Downloads, url: str) -> bytes:
    copy = TransferItem("req-1", 0, None, KnownMedia(None, None, url=url), "bucket", "key")
    spool, _ = session.fetch(copy.name, copy.media, Deadline(session.timeout))
    with spool:
        return bytes(spool.body())


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_hundred_downloads_open_at_most_two_connections_per_slot(certificate, concurrency):
    with FileServer(certificate) as server, downloads(server, concurrency) as session:
        with ThreadPoolExecutor(2 * concurrency) as pool:
            files = list(pool.map(fetch, [session] * 100, [f"{server.url}/{n}" for n in range(100)]))
        assert files == [FILE] * 100
        assert len(server.heads) == 100
        assert server.visits <= 2 * concurrency


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(response(), id="a length"),
        pytest.param(response(FILE, b"Server: one", b"X: y"), id="more headers"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(FILE), FILE),
            id="chunks",
        ),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n" + response(), id="an interim response"),
        pytest.param(response(FILE, b"Not a header: but"), id="a header that is none"),
    ],
)
def test_connection_is_reused_for_any_body_framing_and_odd_headers(certificate, content):
    with FileServer(certificate, content) as server, downloads(server) as session:
        assert [fetch(session, server.url) for _ in range(3)] == [FILE] * 3
        assert server.visits == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(response(FILE, b"Connection: close"), id="it says so"),
        pytest.param(response(FILE).replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(response(FILE) + b"what nobody asked for", id="more than was announced"),
    ],
)
def test_connection_that_closes_or_carries_excess_bytes_is_not_reused(certificate, content):
    with FileServer(certificate, content) as server, downloads(server) as session:
        assert [fetch(session, server.url) for _ in range(3)] == [FILE] * 3
        assert server.visits == 3


@pytest.mark.parametrize("rude", [False, True], ids=["before the request", "while the request is on its way"])
def test_download_succeeds_if_the_server_closed_the_kept_connection(certificate, rude):
    with FileServer(certificate, leaves=2, rude=rude) as server, downloads(server) as session:
        assert [fetch(session, server.url) for _ in range(6)] == [FILE] * 6
        assert server.visits == 3


def test_connection_that_was_idle_for_a_minute_is_not_reused(certificate, monkeypatch):
    with FileServer(certificate) as server, downloads(server) as session:
        fetch(session, server.url)
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        fetch(session, server.url)
        assert server.visits == 2


def test_download_after_a_truncated_response_uses_a_new_connection(certificate):
    cut = response(FILE).replace(b"Content-Length: ", b"Content-Length: 9")
    with FileServer(certificate, cut, leaves=1) as server, downloads(server) as session:
        with pytest.raises(DownloadError, match="bytes arrived"):
            fetch(session, server.url)
        server.response = response()
        assert fetch(session, server.url) == FILE
        assert server.visits == 2


def test_connection_is_not_reused_after_an_error_response(certificate):
    refusal = response(b"not now", status=b"503 Service Unavailable")
    with FileServer(certificate, refusal) as server, downloads(server) as session:
        with pytest.raises(DownloadError, match="503"):
            fetch(session, server.url)
        server.response = response()
        assert fetch(session, server.url) == FILE
        assert server.visits == 2


def test_connections_are_not_shared_between_hosts_and_a_blocked_server_gets_none(certificate):
    with FileServer(certificate) as one, FileServer(certificate) as other, downloads(one, 2) as session:
        urls = [one.url, one.url.replace("127.0.0.1", "localhost")] * 3
        assert [fetch(session, url) for url in urls] == [FILE] * 6
        assert one.visits == 2
        with pytest.raises(NetworkRefusedError):
            fetch(session, other.url)
        assert other.visits == 0


def test_no_more_connections_are_kept_than_there_are_slots(certificate):
    with FileServer(certificate) as server, downloads(server) as session:
        urls = [server.url, server.url.replace("127.0.0.1", "localhost")] * 2
        assert [fetch(session, url) for url in urls] == [FILE] * 4
        assert server.visits == 4


def test_connection_is_reused_after_a_redirect_whose_target_is_checked(certificate):
    with FileServer(certificate) as server, downloads(server) as session:
        server.response = response(b"moved", b"Location: https://10.0.0.1/file", status=b"302 Found")
        for _ in range(2):
            with pytest.raises(NetworkRefusedError, match=r"10\.0\.0\.1"):
                fetch(session, server.url)
        server.response = response()
        assert fetch(session, server.url) == FILE
        assert server.visits == 1


def test_network_guard_checks_the_peer_of_a_reused_connection(certificate, monkeypatch):
    with FileServer(certificate) as server, downloads(server) as session:
        fetch(session, server.url)
        session._guard = network_guard.NetworkGuard("https://api.test")
        monkeypatch.setattr(session._guard, "check_url", lambda url: None)
        with pytest.raises(FileRefusedError, match=r"127\.0\.0\.1"):
            fetch(session, server.url)
        assert len(server.heads) == 1


def test_proxy_tunnel_is_reused(certificate, monkeypatch):
    monkeypatch.setattr(network_guard, "_resolved", lambda host: [address_of("93.184.216.34")])
    with FileServer(certificate) as server, Proxy(server.port) as proxy:
        with downloads(server, 2, f"http://{proxy.address}") as session:
            assert [fetch(session, f"https://files.test/{n}") for n in range(4)] == [FILE] * 4
        assert (proxy.visits, server.visits, len(server.heads)) == (1, 1, 4)
        assert [head.split()[0] for head in proxy.heads] == ["CONNECT"]


class Silent(FileServer):
    """A server that responds to a connection's first request, and stalls the second before its head or within its body."""

    def __init__(self, certificate, begun: bytes) -> None:
        super().__init__(certificate)
        self._begun = begun
        self.is_waited_for = threading.Event()

    def serve(self, visitor: socket.socket) -> None:
        visitor = self._tls.wrap_socket(visitor, server_side=True)
        self.read(visitor)
        visitor.sendall(self.response)
        self.read(visitor)
        visitor.sendall(self._begun)
        self.is_waited_for.set()
        select.select([visitor], [], [], 30)


@pytest.mark.parametrize("begun", [b"", response()[:50000]], ids=["before the head", "within the body"])
def test_abort_ends_a_download_on_a_reused_connection(certificate, begun):
    with Silent(certificate, begun) as server, downloads(server, timeout=60) as session:
        fetch(session, server.url)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(fetch, session, server.url)
            assert server.is_waited_for.wait(10)
            session.abort()
            with pytest.raises(DownloadError):
                running.result(timeout=5)
        assert server.visits == 1


@pytest.mark.parametrize("begun", [b"", response()[:50000]], ids=["before the head", "within the body"])
def test_download_on_a_reused_connection_times_out(certificate, begun):
    with Silent(certificate, begun) as server, downloads(server, timeout=1) as session:
        fetch(session, server.url)
        with pytest.raises(DownloadError, match="did not finish within 1 seconds"):
            fetch(session, server.url)
        assert server.visits == 1
