# SPDX-License-Identifier: Apache-2.0
"""
The pytest plugin ``getimg``: fixtures for tests of DAGs that use this provider.

Merely installed, it changes nothing: it imports no Airflow, starts no server and sets no variable until a test requests
one of its fixtures, or the option ``getimg_airflow`` is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.testing.connection import GetimgConnection
    from airflow_provider_getimg.testing.dag_run import DagRunner
    from airflow_provider_getimg.testing.simulator import GetimgSimulator

OPTION = "getimg_airflow"
MODES = ("isolated", "own")
UNSET = (
    f"run_dag must know which Airflow to use: set {OPTION} = isolated in pytest's configuration for a temporary one, "
    f"which leaves yours alone, or {OPTION} = own for yours as it is configured, where runs are recorded."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addini(
        OPTION, "the Airflow that run_dag uses: 'isolated', a temporary one, or 'own', yours", default=""
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Isolate Airflow, if requested, before a conftest.py or a test imports it."""
    mode = early_config.getini(OPTION)
    if mode and mode not in MODES:
        raise pytest.UsageError(f"{OPTION} must be {' or '.join(map(repr, MODES))}, got {mode!r}.")
    if mode == "isolated":
        from airflow_provider_getimg.testing.isolation import (
            IsolationError,
            isolate_airflow,
            isolated_home,
            restore_environment,
        )

        if isolated_home():
            # A pytest inside another one, as with pytester: the outer one restores the environment.
            return
        try:
            isolate_airflow()
        except IsolationError as error:
            raise pytest.UsageError(str(error)) from None
        early_config.add_cleanup(restore_environment)


@pytest.fixture(scope="session")
def getimg_simulator_server() -> Iterator[GetimgSimulator]:
    """Start the one simulator of the session, or of a pytest-xdist worker; tests use ``getimg_simulator``."""
    from airflow_provider_getimg.testing.server import SimulatorError, SimulatorProcess
    from airflow_provider_getimg.testing.simulator import GetimgSimulator

    process = SimulatorProcess()
    try:
        process.start()
    except SimulatorError as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield GetimgSimulator(process)
    finally:
        process.end()


@pytest.fixture
def getimg_simulator(getimg_simulator_server: GetimgSimulator) -> GetimgSimulator:
    """Return the simulator as if just started: nothing requested or billed, no faults, 100 USD."""
    from airflow_provider_getimg.testing.server import SimulatorError

    try:
        getimg_simulator_server.reset()
    except SimulatorError as error:
        pytest.fail(str(error), pytrace=False)
    return getimg_simulator_server


@pytest.fixture
def getimg_conn(getimg_simulator: GetimgSimulator, monkeypatch: pytest.MonkeyPatch) -> GetimgConnection:
    """Point the connection ``getimg_default`` at ``getimg_simulator`` until the end of the test."""
    from airflow_provider_getimg.testing.connection import ForeignConnectionError, GetimgConnection

    try:
        return GetimgConnection(getimg_simulator, monkeypatch)
    except ForeignConnectionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def getimg_airflow(pytestconfig: pytest.Config) -> str:
    """Prepare the metadata database for ``run_dag``, and return its mode: ``isolated`` or ``own``."""
    from airflow_provider_getimg.testing.database import NotReadyError, create_database, expect_database
    from airflow_provider_getimg.testing.isolation import isolated_home

    try:
        if isolated_home():
            create_database()
            return "isolated"
        if pytestconfig.getini(OPTION) == "own":
            expect_database()
            return "own"
    except NotReadyError as error:
        pytest.fail(str(error), pytrace=False)
    pytest.fail(UNSET, pytrace=False)


@pytest.fixture
def run_dag(getimg_airflow: str) -> Iterator[DagRunner]:
    """Run a DAG in this process, and return the result: see ``DagRunner.__call__``."""
    from airflow_provider_getimg.testing.dag_run import DagRunner

    runner = DagRunner(keep_runs=getimg_airflow == "own")
    yield runner
    runner.forget()
