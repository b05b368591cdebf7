# SPDX-License-Identifier: Apache-2.0
"""A real simulator in its own process, and a client that sees the bytes on the socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

import airflow_provider_getimg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

API_KEY = "sk_for_tests"
BEARER = {"Authorization": f"Bearer {API_KEY}"}
MODEL = "seedream-5-lite"
DEFAULTS = {
    "latency": 0,
    "max_latency": 0,
    "video_latency": 0,
    "download_latency": 0,
    "rpm": 0,
    "concurrency": 0,
    "media_lifetime": 3600,
    "file_size": 0,
    "time_scale": 1,
}


class Running:
    """A running simulator, seen from outside."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process
        self.api_key = API_KEY
        self.http = httpx.Client(base_url=url, headers=BEARER, timeout=20, trust_env=False)
        self.keyless = httpx.Client(timeout=20, trust_env=False)

    def reset(self) -> None:
        # A request that the last test abandoned may still be running.
        deadline = time.monotonic() + 10
        while self.http.get("/_simulator/health").json()["running"]:
            assert time.monotonic() < deadline
        self.http.delete("/_simulator/faults").raise_for_status()
        self.http.delete("/_simulator/ledger").raise_for_status()
        self.set(**DEFAULTS)
        self.http.put("/_simulator/balance", json={"balance": "100"}).raise_for_status()

    def set(self, **settings: float) -> None:
        self.http.put("/_simulator/settings", json=settings).raise_for_status()

    def fault(self, on: str, kind: str, **more: Any) -> None:
        self.http.post(
            "/_simulator/faults", json={"faults": [{"on": on, "kind": kind, **more}]}
        ).raise_for_status()

    def post(self, **fields: Any) -> httpx.Response:
        return self.http.post("/v2/images/generations", json={"model": MODEL, "prompt": "a lake", **fields})

    def url_of(self, **fields: Any) -> str:
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return str(response.json()["data"][0]["url"])

    def ledger(self) -> dict[str, Any]:
        ledger: dict[str, Any] = self.http.get("/_simulator/ledger").json()
        return ledger

    def last(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.ledger()["posts"][-1]
        return entry

    def balance(self) -> str:
        return str(self.http.get("/v2/billing/balance").json()["balance"])

    def eventually(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the newest entry of the ledger once it meets the condition."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            posts = self.ledger()["posts"]
            if posts and condition(posts[-1]):
                return dict(posts[-1])
            time.sleep(0.01)
        raise AssertionError(f"the ledger never came to that: {self.ledger()}")

    @contextmanager
    def sent(self, method: str, url: str, body: dict[str, Any] | None = None) -> Iterator[socket.socket]:
        """Send a request over a socket, and yield the socket to read the response from."""
        parts = urlsplit(url)
        content = json.dumps(body).encode() if body is not None else b""
        head = (
            f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Authorization: {BEARER['Authorization']}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(head.encode() + content)
            yield connection

    @contextmanager
    def sent_post(self, **fields: Any) -> Iterator[socket.socket]:
        body = {"model": MODEL, "prompt": "a lake", **fields}
        with self.sent("POST", f"{self.url}/v2/images/generations", body) as connection:
            yield connection

    def raw(self, method: str, url: str, body: dict[str, Any] | None = None) -> tuple[bytes, bytes]:
        """Send a request, and return the head and body that arrive until the server closes the connection."""
        with self.sent(method, url, body) as connection:
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, content = received.partition(b"\r\n\r\n")
        return head, content


@contextmanager
def started(tmp_path: Path, *options: str) -> Iterator[Running]:
    errors = tmp_path / "stderr.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "airflow_provider_getimg.simulator",
                "--port",
                "0",
                "--api-key",
                API_KEY,
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=Path(airflow_provider_getimg.__file__).parents[1],
        )
    assert process.stdout is not None
    try:
        first_line = process.stdout.readline().strip()
        assert first_line, errors.read_text()
        running = Running(first_line, process)
        with running.http, running.keyless:
            yield running
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
    assert errors.read_text() == "", "the simulator wrote to stderr"


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    return lambda *options: started(tmp_path, *options)


@pytest.fixture(scope="session")
def shared_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@pytest.fixture
def simulator(shared_simulator: Running) -> Running:
    shared_simulator.reset()
    return shared_simulator
