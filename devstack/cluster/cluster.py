# SPDX-License-Identifier: Apache-2.0
"""The whole cluster: the order in which its services start, and when it is healthy."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import psutil  # type: ignore[import-untyped]

from airflow_provider_getimg.testing.server import SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator
from devstack.cluster.component import Component
from devstack.cluster.compose import REPOSITORY, Addresses, Service, read_services, simulator_options
from devstack.cluster.folder import ClusterFolder
from devstack.cluster.memory import Memory, memory_of
from devstack.cluster.servers import Broker, PostgreSQL
from devstack.cluster.workers import silent_workers
from devstack.network import LOOPBACK, clean_environment, free_ports
from devstack.process import StackError, tail
from devstack.rest import HEARTBEATS, AirflowRest
from devstack.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

# Half a minute on two idle cores, several minutes on a busy machine.
READY_SECONDS = 300.0
REPORT_SECONDS = 30.0
LASTING = ("api-server", "scheduler", "dag-processor", "triggerer", "worker")
# Airflow calls this for the host name, so that each component has its own, as a container does.
HOSTNAME_MODULE = """\
import os
def hostname():
    return os.environ["HOSTNAME"]
"""


class Cluster:
    """Airflow with Celery workers, and everything around it, on free loopback ports.

    A context manager. It ends with the process that started it, even if that is killed. Anyone who
    can connect to loopback is an administrator of this Airflow.

    :param dags: Folders with DAG files.
    :param workers: Celery workers.
    :param slots: Tasks that each worker runs at once.
    :param concurrency: Slots of the pool ``getimg``.
    :param env: Settings of Airflow's components, instead of those in the compose file.
    :param simulator: Options of the simulator, instead of those in the compose file, such as
        ``{"latency": 0.5}``.
    :param folder: A new folder for logs and data, which is kept; by default a temporary one.
    """

    #: The bucket that the compose file creates, and that the Variable ``getimg_bucket`` names.
    bucket = "getimg"

    def __init__(
        self,
        *,
        dags: Sequence[Path] = (REPOSITORY / "dags",),
        workers: int = 2,
        slots: int = 8,
        concurrency: int = 4,
        env: Mapping[str, str] | None = None,
        simulator: Mapping[str, object] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.folder = ClusterFolder(folder)
        self._dags = dags
        self._api_key = f"sk_{secrets.token_hex(16)}"
        self._env = dict(env or {})
        self._simulator_options = dict(simulator or {})
        self._sizes = {
            "AIRFLOW_WORKERS": workers,
            "AIRFLOW_WORKER_SLOTS": slots,
            "AIRFLOW_PARALLELISM": workers * slots,
            "GETIMG_CONCURRENCY": concurrency,
        }
        #: Every server except ``s3`` and ``simulator``, by its name in the compose file; workers are ``worker-1`` and so on.
        self.components: dict[str, Component] = {}
        self.s3: SeaweedFS
        self.simulator: GetimgSimulator
        self.rest: AirflowRest
        self._broker_url = ""
        self._ends: list[Callable[[], None]] = []

    @property
    def workers(self) -> list[Component]:
        """The Celery workers."""
        return [part for name, part in self.components.items() if name.startswith("worker-")]

    @property
    def url(self) -> str:
        """Airflow's UI."""
        return self.rest.url

    def memory(self) -> dict[str, Memory]:
        """Measure the memory of each server's process tree."""
        found = {name: part.memory() for name, part in self.components.items()}
        assert self.s3.process is not None
        guard = psutil.Process(self.simulator.process.pid)
        found["seaweedfs"] = memory_of(self.s3.process.descendants())
        found["simulator"] = memory_of(guard.children(recursive=True))
        return found

    def start(self) -> Self:
        """Start everything, and wait until all of it is healthy.

        :raises devstack.StackError: Something died or was not ready in time.
        """
        try:
            addresses, services = self._start_servers()
            self._run("migrate", addresses, services)
            # Compose orders these more strictly. Here they start at once, alongside `init`, which creates the
            # connections: no connection is used before a DAG is triggered, and this takes half the time.
            for name in LASTING:
                self._start_component(services[name], addresses)
            self._run("init", addresses, services)
            self.wait_until_healthy()
            self.rest.log_in()
        except BaseException:
            self.end()
            raise
        return self

    def end(self) -> None:
        """End everything, and delete the folder if it is a temporary one."""
        servers = {"postgres", "valkey"}
        run_concurrently([part.end for name, part in self.components.items() if name not in servers])
        # Last: the other components would log errors without them.
        run_concurrently(
            [*self._ends, *(part.end for name, part in self.components.items() if name in servers)]
        )
        self.folder.close()

    def unhealthy(self) -> list[str]:
        """Name the components that are down, have sent no heartbeat, or don't respond."""
        missing = {part.name for part in self.components.values() if not part.running}
        missing = missing or self.rest.without_heartbeat()
        return sorted(missing or silent_workers(self._broker_url, {worker.name for worker in self.workers}))

    def wait_until_healthy(self, timeout: float = READY_SECONDS) -> None:
        """Wait until every component is up and has sent a heartbeat, and every worker responds.

        Print what is missing every 30 seconds.

        :raises devstack.StackError: One has died, or is not healthy in time.
        """
        deadline = time.monotonic() + timeout
        report = time.monotonic() + REPORT_SECONDS
        while missing := self.unhealthy():
            for part in self.components.values():
                if not part.running:
                    raise StackError(f"{part.name} has died.", tail(part.log))
            if time.monotonic() > deadline:
                logs = [f"{name}:\n{tail(self.folder.log(name))}" for name in missing]
                raise StackError(f"Not healthy after {timeout:g} s: {', '.join(missing)}.", "\n\n".join(logs))
            if time.monotonic() > report:
                print(f"Still waiting for {', '.join(missing)}", flush=True)
                report = time.monotonic() + REPORT_SECONDS
            time.sleep(0.3)

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the health check that the compose file has for one of Airflow's components."""
        part = self.components[name]
        return subprocess.run(
            part.healthcheck, env=part.env, capture_output=True, text=True, check=False, timeout=60
        )

    def _start_servers(self) -> tuple[Addresses, dict[str, Service]]:
        self.folder.open()
        self.s3 = SeaweedFS(log=self.folder.log("seaweedfs"))
        postgres, valkey, api_server, scheduler_health = free_ports(4)
        services = read_services(self._variables(api_server))
        options: dict[str, Any] = simulator_options(services["simulator"]) | self._simulator_options
        simulator = SimulatorProcess(log=self.folder.log("simulator"), api_key=self._api_key, **options)
        self._ends += [self.s3.end, simulator.end]
        self.rest = AirflowRest(f"http://{LOOPBACK}:{api_server}")
        self._ends.append(self.rest.close)
        self._write_hostname_module()
        addresses = Addresses(
            home=self.folder.path,
            dags=self.folder.link(self._dags),
            postgres=postgres,
            valkey=valkey,
            api_server=api_server,
            scheduler_health=scheduler_health,
        )
        temporary = self.folder.temporary
        database = PostgreSQL(services["postgres"], addresses, self.folder.log("postgres"), remove=temporary)
        broker = Broker(services["valkey"], addresses, self.folder.log("valkey"), remove=temporary)
        self.components |= {"postgres": database, "valkey": broker}
        run_concurrently([self.s3.start, simulator.start, database.start, broker.start])
        database.wait_until_ready()
        broker.wait_until_ready()
        self.simulator = GetimgSimulator(simulator)
        addresses.seaweedfs, addresses.simulator = self.s3.endpoint_url, simulator.url
        self._broker_url = addresses.rewrite(services["worker"].environment["AIRFLOW__CELERY__BROKER_URL"])
        return addresses, services

    def _variables(self, api_server: int) -> dict[str, str]:
        """Return the variables to use instead of ``.env``, with new secrets."""
        return {
            "AIRFLOW_FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW_JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW_SECRET_KEY": secrets.token_urlsafe(32),
            "POSTGRES_PASSWORD": secrets.token_urlsafe(24),
            "VALKEY_PASSWORD": secrets.token_urlsafe(24),
            "S3_ACCESS_KEY": self.s3.access_key,
            "S3_SECRET_KEY": self.s3.secret_key,
            "GETIMG_API_URL": "http://simulator:8000",
            "S3_ENDPOINT_URL": "http://seaweedfs:8333",
            "GETIMG_API_KEY": self._api_key,
            "AIRFLOW_PORT": str(api_server),
            **{name: str(value) for name, value in self._sizes.items()},
        }

    def _start_component(self, service: Service, addresses: Addresses) -> None:
        for number in range(1, service.replicas + 1):
            name = f"{service.name}-{number}" if service.name == "worker" else service.name
            part = Component(
                name,
                addresses.command(service, name),
                self._environment(service, addresses, name),
                self.folder.log(name),
                cwd=self.folder.path,
                responds=self._probe(name),
                remove=self.folder.temporary,
                healthcheck=addresses.healthcheck(service),
            )
            self.components[name] = part
            part.start()

    def _probe(self, name: str) -> Callable[[], bool] | None:
        if name == "api-server":
            return lambda: bool(self.rest.health())
        if name.startswith("worker-"):
            return lambda: not silent_workers(self._broker_url, {name})
        return None if name not in HEARTBEATS else lambda: name not in self.rest.without_heartbeat()

    def _run(self, name: str, addresses: Addresses, services: Mapping[str, Service]) -> None:
        """Run a one-off service to its end."""
        service = services[name]
        addresses.write_configs(service)
        once = Component(
            name,
            addresses.command(service, name),
            self._environment(service, addresses, name),
            self.folder.log(name),
            cwd=self.folder.path,
            remove=self.folder.temporary,
        )
        if (code := once.run(READY_SECONDS)) != 0:
            raise StackError(f"{name} failed (exit code {code}).", tail(once.log))

    def _environment(self, service: Service, addresses: Addresses, hostname: str) -> dict[str, str]:
        env = clean_environment() | self.folder.environment
        env |= addresses.environment(service, hostname) | self._env
        env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
        return env

    def _write_hostname_module(self) -> None:
        # Airflow adds this folder to sys.path.
        config = self.folder.path / "airflow" / "config"
        config.mkdir(parents=True)
        (config / "cluster_hostname.py").write_text(HOSTNAME_MODULE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()


def run_concurrently(calls: Iterable[Callable[[], object]]) -> None:
    """Make all calls at the same time, and raise the first error after all have returned."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()
