# SPDX-License-Identifier: Apache-2.0
"""``make cluster`` runs what ``docker-compose.yaml`` defines, apart from the addresses."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import psutil
import pytest

from devstack.cluster.cluster import LASTING, Cluster
from devstack.cluster.compose import Addresses, read_services, simulator_options
from devstack.process import StackError

if TYPE_CHECKING:
    from pathlib import Path

    from devstack import SeaweedFS

AIRFLOW = (*LASTING, "migrate", "init")
# Addresses and paths that exist only in a container.
CONTAINER = re.compile(
    r"(?<![\w.-])(postgres|valkey|api-server|seaweedfs|simulator):\d|(?<!\w)/(opt|etc|data)/|0\.0\.0\.0"
)
# Set by the image or by the container's network; see Addresses.
ADDRESSES = {
    "HOSTNAME",
    "AIRFLOW_HOME",
    "AIRFLOW__CORE__DAGS_FOLDER",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE",
    "AIRFLOW__API__HOST",
    "AIRFLOW__API__PORT",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT",
}


@pytest.fixture
def addresses(tmp_path: Path) -> Addresses:
    return Addresses(
        home=tmp_path,
        dags=tmp_path / "dags",
        postgres=11001,
        valkey=11002,
        api_server=11003,
        scheduler_health=11004,
        seaweedfs="http://127.0.0.1:11005",
        simulator="http://127.0.0.1:11006",
    )


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_commands_match_the_compose_file(services, addresses, name):
    command = addresses.command(services[name], "here")
    own = ["--celery-hostname", "here"] if name == "worker" else []
    if name == "init":
        moved = [
            part.replace("/etc/getimg/", f"{addresses.home}/etc/getimg/") for part in services[name].command
        ]
        assert command == moved
    else:
        assert command == ["airflow", *services[name].command, *own]


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_settings_match_the_compose_file_except_for_addresses(services, addresses, name):
    compose, here = services[name].environment, addresses.environment(services[name], "here")
    assert here.keys() - compose.keys() == ADDRESSES
    moved = {key for key, value in compose.items() if here[key] != value}
    # Only the settings that contain an address.
    assert moved == {
        "AIRFLOW__CELERY__BROKER_URL",
        "AIRFLOW__CELERY__RESULT_BACKEND",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    }
    assert here["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:11003"


@pytest.mark.parametrize("name", [*AIRFLOW, "valkey"])
def test_no_container_address_or_path_remains(services, addresses, name):
    service = services[name]
    texts = [
        *addresses.command(service, "here"),
        *addresses.environment(service, "here").values(),
        *map(addresses.rewrite, service.configs.values()),
    ]
    if name in LASTING and service.healthcheck:
        texts += addresses.healthcheck(service)
    elsewhere = [text.replace(f"{addresses.home}/", "home:") for text in texts]
    assert [text for text in elsewhere if CONTAINER.search(text)] == []


def test_airflow_listens_only_on_loopback(services, addresses):
    environment = addresses.environment(services["api-server"], "here")
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST"] == "127.0.0.1"
    for name in ("scheduler", "triggerer", "worker"):
        # Their log servers would listen on all interfaces, which no setting changes.
        assert "--skip-serve-logs" in addresses.command(services[name], "here")


def test_configuration_files_are_private_and_have_the_rewritten_addresses(services, addresses):
    addresses.write_configs(services["init"])
    path = addresses.home / "etc" / "getimg" / "connections.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = json.loads(path.read_text())
    assert found["aws_default"]["extra"]["endpoint_url"] == addresses.seaweedfs
    assert found["getimg_default"]["host"] == addresses.simulator


def test_broker_configuration_differs_only_in_its_address_port_and_folder(services, addresses):
    (content,) = services["valkey"].configs.values()
    before, after = content.splitlines(), addresses.rewrite(content).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ("bind * -::*", "bind 127.0.0.1"),
        ("port 6379", "port 11002"),
        ("dir /data", f"dir {addresses.home}/valkey"),
    ]


def test_s3_server_starts_with_the_flags_of_the_compose_file(services, seaweedfs: SeaweedFS):
    assert seaweedfs.process is not None
    cmdlines = [process.cmdline() for process in seaweedfs.process.descendants()]
    [running] = [cmdline for cmdline in cmdlines if "server" in cmdline]
    program, *compose = services["seaweedfs"].command
    assert program == "server"
    flags = dict(part.split("=", 1) for part in running[running.index("server") + 1 :])
    expected = dict(part.split("=", 1) for part in compose)
    # Its ports, folders and sockets differ; all other flags have the same values.
    own = {"-dir", "-s3.ip.bind", "-s3.port", "-s3.config"}
    assert {name: flags[name] for name in expected.keys() - own} == {
        name: value for name, value in expected.items() if name not in own
    }
    assert flags.keys() - expected.keys() == {
        *("-master.port", "-volume.port", "-filer.port"),
        *("-s3.localSocket", "-filer.localSocket"),
    }


def test_simulator_options_come_from_the_compose_file(services):
    assert simulator_options(services["simulator"]) == {"latency": "2"}


def test_missing_variable_fails_with_a_message_that_names_it(example_variables):
    variables = {name: value for name, value in example_variables.items() if name != "VALKEY_PASSWORD"}
    with pytest.raises(StackError, match="Compose refuses") as caught:
        read_services(variables)
    assert "set VALKEY_PASSWORD in .env" in caught.value.log_tail


def test_failed_start_leaves_no_folder_and_no_process(monkeypatch, tmp_path):
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(_variables: object) -> None:
        raise StackError("no")

    monkeypatch.setattr("devstack.cluster.cluster.read_services", refuse)
    with pytest.raises(StackError, match="no"):
        Cluster().start()
    assert list(tmp_path.iterdir()) == []
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
