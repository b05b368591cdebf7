# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

import pytest

from devstack.network import GRPC_OFFSET, PORTS, clean_environment, free_ports, is_free


def test_free_ports_are_distinct_and_leave_room_for_grpc() -> None:
    ports = free_ports(20, with_grpc=True)
    assert len(set(ports)) == 20
    assert all(port in PORTS and is_free(port + GRPC_OFFSET) for port in ports)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"], ids=["loopback", "all interfaces"])
def test_port_with_a_listener_is_not_free(host: str) -> None:
    with socket.create_server((host, 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_environment_of_a_stack_has_nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GETIMG_API_KEY", "sk_secret")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("NO_PROXY", "intranet")
    env = clean_environment()
    assert not {"GETIMG_API_KEY", "AWS_PROFILE", "AIRFLOW__CORE__EXECUTOR"} & set(env)
    assert env["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert clean_environment(keep_aws=True)["AWS_PROFILE"] == "mine"
