# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

import httpx
import pytest

CALLS = {
    "health": ("GET", "health", None),
    "ledger": ("GET", "ledger", None),
    "empty the ledger": ("DELETE", "ledger", None),
    "faults": ("GET", "faults", None),
    "add a fault": ("POST", "faults", {"faults": [{"on": "image", "kind": "hang"}]}),
    "drop the faults": ("DELETE", "faults", None),
    "balance": ("PUT", "balance", {"balance": "1"}),
    "settings": ("GET", "settings", None),
    "change settings": ("PUT", "settings", {"rpm": 1}),
}
EACH_CALL = pytest.mark.parametrize(("method", "path", "body"), CALLS.values(), ids=CALLS.keys())


def call(simulator, method, path, body=None, **headers):
    return simulator.keyless.request(method, f"{simulator.url}/_simulator/{path}", json=body, headers=headers)


def state(simulator):
    paths = ("ledger", "faults", "settings")
    return [simulator.http.get(f"/_simulator/{path}").json() for path in paths], simulator.balance()


@EACH_CALL
@pytest.mark.parametrize("where", ["host", "origin"])
def test_request_with_a_foreign_host_or_origin_is_rejected_and_changes_nothing(
    simulator, method, path, body, where
):
    simulator.post()
    simulator.fault("image", "status", status=500, times=2)
    before = state(simulator)
    headers = {"host": "attacker.example:8989"} if where == "host" else {"origin": "https://attacker.example"}
    response = call(simulator, method, path, body, **headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    message = response.json()["error"]["message"]
    assert message.startswith(f"The {where.title()} must be localhost or an address of the simulator, got ")
    assert state(simulator) == before


@EACH_CALL
def test_cors_preflight_is_rejected_even_from_localhost(simulator, method, path, body):
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": method}
    response = call(simulator, "OPTIONS", path, **headers)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


LOCAL = [
    "localhost",
    "localhost:1",
    "LOCALHOST:8989",
    "a.localhost",
    "127.0.0.1",
    "127.9.9.9:80",
    "[::1]:8989",
]
FOREIGN = ["", "0.0.0.0", "10.0.0.1", "[fd00::1]", "simulator:8000", "localhost.attacker.example", "127.0.0.1.nip.io",
           "[::1", "a b"]  # fmt: skip


@pytest.mark.parametrize(("host", "status"), [(h, 200) for h in LOCAL] + [(h, 403) for h in FOREIGN])
def test_only_loopback_hosts_are_accepted(simulator, host, status):
    assert call(simulator, "GET", "health", host=host).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:3000", 200), ("http://127.0.0.1", 200), ("null", 403), ("", 403), ("localhost", 403)],
)
def test_only_loopback_origins_are_accepted(simulator, origin, status):
    assert call(simulator, "GET", "health", origin=origin).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
def test_listening_host_is_accepted_and_a_service_name_too_if_it_is_0_0_0_0(start, host):
    with start("--host", host) as simulator:
        assert call(simulator, "GET", "health").status_code == 200
        assert call(simulator, "GET", "health", host=host).status_code == 200
        # Other containers reach it by its service name.
        response = call(simulator, "GET", "health", host="simulator:8000")
        assert response.status_code == (200 if host == "0.0.0.0" else 403)
        assert call(simulator, "GET", "health", host="simulator.example:8000").status_code == 403
        assert call(simulator, "GET", "health", host="192.0.2.1").status_code == 403


def test_address_that_the_client_connected_to_is_accepted_as_host(start):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        # Connecting a UDP socket sends nothing: it only selects this machine's outbound address, if any.
        try:
            route.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = route.getsockname()[0]
    with start("--host", "0.0.0.0") as simulator:
        port = httpx.URL(simulator.url).port
        url = f"http://{address}:{port}/_simulator/health"
        assert simulator.keyless.get(url).status_code == 200
        assert simulator.keyless.get(url, headers={"Host": "198.51.100.1"}).status_code == 403


@pytest.mark.parametrize(
    ("mime_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("", 415),
    ],
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "faults", b'{"faults": []}'),
        ("PUT", "balance", b'{"balance": "7"}'),
        ("PUT", "settings", b'{"rpm": 7}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_a_json_content_type_is_accepted(simulator, method, path, body, mime_type, status):
    response = simulator.keyless.request(
        method, f"{simulator.url}/_simulator/{path}", content=body, headers={"Content-Type": mime_type}
    )
    assert response.status_code == status
    if status == 415:
        assert response.json()["error"]["message"] == "The Content-Type must be application/json."
        assert (simulator.balance(), simulator.http.get("/_simulator/settings").json()["rpm"]) == (
            "100.00",
            0,
        )


def test_api_itself_accepts_any_host_and_origin(simulator):
    response = simulator.http.get(
        "/v2/models", headers={"Host": "simulator:8000", "Origin": "https://x.example"}
    )
    assert response.status_code == 200
