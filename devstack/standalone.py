# SPDX-License-Identifier: Apache-2.0
"""A real Airflow on SQLite with the LocalExecutor, for one machine with two cores."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from devstack.network import LOOPBACK, clean_environment, free_ports
from devstack.process import GuardedProcess, StackError
from devstack.rest import AirflowRest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY_SECONDS = 120.0
SCRIPTS = Path(sysconfig.get_path("scripts"))

# ``airflow standalone`` starts its components as ``airflow scheduler`` and so on from PATH. Their
# log servers listen on all interfaces, which no setting changes; on one machine they are not needed,
# since the API server reads the log files directly. This script comes before the real one on PATH.
LAUNCHER = """\
#!/bin/sh
case "$1" in
    scheduler | triggerer) exec {airflow} "$@" --skip-serve-logs ;;
esac
exec {airflow} "$@"
"""


class Airflow(AirflowRest):
    """``airflow standalone``: every component, no login, loopback only, free ports.

    Anyone who can connect to loopback is an administrator of it.

    :param home: ``AIRFLOW_HOME``: database, configuration and task logs. Created if it is missing.
    :param dags_folders: Folders with DAG files; each becomes a DAG bundle.
    :param path: The path of Airflow's base URL, such as ``/airflow``; by default the root.
    :param env: Further environment variables, such as ``AIRFLOW_CONN_…`` and ``AIRFLOW_VAR_…``.
    :param keep_aws: Pass the shell's AWS settings on (see
        :func:`devstack.network.clean_environment`).
    :param log: File for the components' output; by default ``airflow.log`` in ``home``.
    """

    def __init__(
        self,
        home: Path,
        dags_folders: Sequence[Path],
        *,
        path: str = "",
        env: Mapping[str, str] | None = None,
        keep_aws: bool = False,
        log: Path | None = None,
    ) -> None:
        (port,) = free_ports(1)
        super().__init__(f"http://{LOOPBACK}:{port}{path}")
        self.home = home.absolute()
        self.log = log or self.home / "airflow.log"
        self.process: GuardedProcess | None = None
        settings = self._settings(port, [folder.absolute() for folder in dags_folders])
        #: Environment of every component; also works for an ``airflow`` command run beside them.
        self.env = clean_environment(keep_aws=keep_aws) | settings | dict(env or {})
        self.env["PATH"] = os.pathsep.join(
            [str(self.home / "bin"), str(SCRIPTS), self.env.get("PATH", os.defpath)]
        )

    def begin(self) -> Self:
        """Start the processes without waiting until they are ready."""
        launcher = self.home / "bin" / "airflow"
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(LAUNCHER.format(airflow=shlex.quote(str(SCRIPTS / "airflow"))))
        launcher.chmod(0o755)
        self.process = GuardedProcess(
            "Airflow",
            ["airflow", "standalone"],
            log=self.log,
            env=self.env,
            cwd=self.home,
            grace=3.0,
        )
        return self

    def wait_until_ready(self, timeout: float = READY_SECONDS) -> Self:
        """Wait until the API server responds and every component has sent a heartbeat.

        :raises devstack.StackError: It died or was not ready in time.
        """
        assert self.process is not None, "begin() comes first"
        self.process.wait_until(lambda: not self.without_heartbeat(), timeout=timeout)
        self.log_in()
        return self

    def start(self) -> Self:
        """Start and wait until ready.

        :raises devstack.StackError: It died or was not ready in time.
        """
        try:
            return self.begin().wait_until_ready()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all components and their tasks."""
        self.close()
        if self.process is not None:
            self.process.end()

    def waiting_state(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        """Return the state of a task that waits outside a worker, once its wait may end; otherwise None.

        A wait that ends before the scheduler has registered the end of the task's process counts as a failed try:
        to the scheduler, the process seems lost (https://github.com/apache/airflow/issues/72716).
        """
        task = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        if task["state"] not in ("deferred", "up_for_reschedule", "awaiting_input"):
            return None
        ended = f"task_id='{task_id}', run_id='{run_id}', try_number={task['try_number']}, "
        with self.log.open() as lines:
            registered = any("Received executor event" in line and ended in line for line in lines)
        return str(task["state"]) if registered else None

    def _settings(self, port: int, dags_folders: Sequence[Path]) -> dict[str, str]:
        bundles: list[dict[str, Any]] = [
            {
                "name": f"dags-{number}",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder)},
            }
            for number, folder in enumerate(dags_folders)
        ]
        settings: dict[str, dict[str, object]] = {
            "api": {
                "host": LOOPBACK,
                "port": port,
                "base_url": self.url,
                "workers": 1,
                "secret_key": secrets.token_urlsafe(32),
            },
            "api_auth": {"jwt_secret": secrets.token_urlsafe(48)},
            "core": {
                "executor": "LocalExecutor",
                # With more writers, SQLite fails with "database is locked".
                "parallelism": 4,
                "load_examples": False,
                "dags_folder": dags_folders[0],
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "simple_auth_manager_all_admins": True,
                "test_connection": "Enabled",
                # A changed file takes effect the next time it is parsed.
                "min_serialized_dag_update_interval": 1,
            },
            "database": {
                "sql_alchemy_conn": f"sqlite:///{self.home / 'airflow.db'}",
                "load_default_connections": False,
            },
            "dag_processor": {
                "dag_bundle_config_list": json.dumps(bundles),
                "refresh_interval": 5,
                "min_file_process_interval": 20,
            },
            "logging": {"base_log_folder": self.home / "logs"},
            "scheduler": {"scheduler_idle_sleep_time": 0.2, "enable_health_check": False},
            "usage_data_collection": {"enabled": False},
        }
        return {
            "AIRFLOW_HOME": str(self.home),
            **{
                f"AIRFLOW__{section}__{option}".upper(): str(value)
                for section, options in settings.items()
                for option, value in options.items()
            },
        }

    def _failure(self, message: str, log_tail: str = "") -> StackError:
        if self.process is not None and not self.process.running:
            return StackError(f"{message} Airflow itself has died.", log_tail)
        return StackError(message, log_tail)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
