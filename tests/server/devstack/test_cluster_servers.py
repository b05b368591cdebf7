# SPDX-License-Identifier: Apache-2.0
"""The cluster's servers as real processes: started, killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import psutil
import psycopg2
import pytest
from rich.console import Console
from valkey import Valkey
from valkey.exceptions import AuthenticationError

from devstack.cluster import Component, Memory
from devstack.cluster.compose import Addresses
from devstack.cluster.folder import ClusterFolder
from devstack.cluster.memory import memory_of, memory_table
from devstack.cluster.servers import UNPRIVILEGED, Broker, PostgreSQL
from devstack.network import free_ports
from devstack.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder() -> Iterator[ClusterFolder]:
    opened = ClusterFolder()
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def addresses(folder: ClusterFolder) -> Addresses:
    postgres, valkey = free_ports(2)
    return Addresses(
        home=folder.path,
        dags=folder.path,
        postgres=postgres,
        valkey=valkey,
        api_server=0,
        scheduler_health=0,
    )


def listeners(component: Component) -> set[str]:
    assert component.process is not None
    found = set()
    for process in component.process.descendants():
        # PostgreSQL's helpers come and go.
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections()
            found |= {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
    return found


def test_postgresql_keeps_committed_data_when_it_is_killed(
    services, addresses: Addresses, folder: ClusterFolder
):
    database = PostgreSQL(services["postgres"], addresses, folder.log("postgres"))

    def ask(sql: str) -> str:
        connection = psycopg2.connect(
            host="127.0.0.1", port=addresses.postgres, user="airflow", password="change-me", dbname="airflow"
        )
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return str(cursor.fetchone()[0]) if cursor.description else ""
        finally:
            connection.close()

    try:
        database.start()
        database.wait_until_ready()
        assert ask("show max_connections") == "200"
        ask("create table kept as select 7 as number")
        assert listeners(database) == {"127.0.0.1"}
        assert database.process is not None
        assert database.process.descendants()[0].uids().effective != 0
        database.restart()
        assert ask("select number from kept") == "7"
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(
                host="127.0.0.1", port=addresses.postgres, user="airflow", password="wrong", dbname="airflow"
            )
    finally:
        database.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL changes its user for root alone")
def test_postgresql_start_fails_with_advice_if_it_may_not_enter_the_folder(
    services, addresses: Addresses, tmp_path: Path
):
    tmp_path.chmod(0o700)
    addresses.home = tmp_path
    database = PostgreSQL(services["postgres"], addresses, tmp_path / "log")
    with pytest.raises(
        StackError, match=rf"runs as {UNPRIVILEGED}, who may not enter /.*: choose another folder"
    ):
        database.start()


def test_queued_task_survives_a_kill_of_the_broker(services, addresses: Addresses, folder: ClusterFolder):
    broker = Broker(services["valkey"], addresses, folder.log("valkey"))
    try:
        broker.start()
        broker.wait_until_ready()
        with Valkey("127.0.0.1", addresses.valkey, password="change-me") as client:
            client.rpush("default", "a task")
        with Valkey("127.0.0.1", addresses.valkey) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        assert listeners(broker) == {"127.0.0.1"}
        broker.restart()
        with Valkey("127.0.0.1", addresses.valkey, password="change-me") as client:
            assert client.lrange("default", 0, -1) == [b"a task"]
        assert 0 < broker.memory().pss <= broker.memory().rss
    finally:
        broker.end()
    assert not broker.responds()


def test_running_component_cannot_be_started_twice(tmp_path: Path):
    part = Component("part", ["sleep", "1000"], dict(os.environ), tmp_path / "log")
    part.start()
    try:
        with pytest.raises(StackError, match="part is already running"):
            part.start()
        assert part.process is not None
        part.process.wait_until(part.process.descendants, timeout=10)
        assert part.memory().processes == 1
    finally:
        part.end()
    assert part.memory() == Memory(0, 0, 0)


def test_run_returns_the_exit_code_of_the_component(tmp_path: Path):
    assert Component("part", ["sh", "-c", "exit 3"], dict(os.environ), tmp_path / "log").run(10) == 3


def test_component_that_exceeds_its_timeout_is_ended(tmp_path: Path):
    part = Component("part", ["sleep", "1000"], dict(os.environ), tmp_path / "log")
    with pytest.raises(StackError, match=r"part did not end in 0\.2 s"):
        part.run(0.2)
    assert not part.running


def test_folder_is_deleted_after_the_last_guard_when_its_owner_is_killed(tmp_path: Path):
    program = f"""
        import os, pathlib, sys, tempfile, time
        tempfile.tempdir = {str(tmp_path)!r}
        from devstack.cluster import Component
        from devstack.cluster.folder import ClusterFolder
        folder = ClusterFolder()
        folder.open()
        # After SIGTERM, it still writes for a while.
        script = ("trap 'sleep 0.5; mkdir -p $FOLDER/late; echo late > $FOLDER/late/log; exit' TERM;"
                  "echo ready; while :; do sleep 0.05; done")
        part = Component("part", ["sh", "-c", script], os.environ | {{"FOLDER": str(folder.path)}},
                         folder.log("part"), remove=folder.temporary)
        part.start()
        part.process.wait_until(lambda: "ready" in part.log.read_text(), timeout=10)
        print("up", flush=True)
        time.sleep(1000)
        """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    [folder] = tmp_path.iterdir()
    owner.send_signal(signal.SIGKILL)
    owner.wait(10)
    deadline = time.monotonic() + 15
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # The component's last write must not have created the folder again.
    assert list(tmp_path.iterdir()) == []


def test_memory_is_summed_over_the_given_processes():
    own = psutil.Process()
    one, two = memory_of([own]), memory_of([own, own])
    assert (one.processes, two.processes) == (1, 2)
    assert two.rss >= one.rss > one.pss * 0.5 > 0


def test_memory_table_shows_the_measurements_side_by_side():
    console = Console(width=100, record=True)
    before = {"worker-1": Memory(rss=300 * 2**20, pss=200 * 2**20, processes=3)}
    after = {"worker-1": Memory(rss=500 * 2**20, pss=400 * 2**20, processes=5)}
    with console.capture() as capture:
        console.print(memory_table(("start", before), ("end", after)))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    assert ["worker-1", "5", "200", "300", "400", "500"] in lines
    assert ["all", "200", "400"] in lines
