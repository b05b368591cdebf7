# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: real local servers, started when the first test asks for one.

Before anything else, an environment of the tests' own: no ``~/airflow``, no credentials or keys of
whoever runs them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING


def isolate_environment() -> None:
    """Point Airflow and boto3 away from the user's own files; Airflow reads it on import."""
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "AWS_", "GETIMG_", "DEMO_S3_")):
            del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="airflow-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AWS_CONFIG_FILE": str(home / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


isolate_environment()

import pytest  # noqa: E402

from devstack import Airflow, SeaweedFS, Simulator  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
# The bucket of the Airflow Variable ``getimg_bucket`` in ``airflow_stack``.
STACK_BUCKET = "getimg-stack"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Create the metadata database of this process's own Airflow, for ``dag.test()``."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """A real S3 server, shared by the whole session."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> str:
    """A new, empty bucket on ``seaweedfs``."""
    return seaweedfs.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def simulator_server() -> Iterator[Simulator]:
    """The simulator's process; tests take ``simulator``."""
    with Simulator() as server:
        yield server


@pytest.fixture
def simulator(simulator_server: Simulator) -> Simulator:
    """The simulator as if just started: no requests, no faults, default settings."""
    simulator_server.reset()
    return simulator_server


@pytest.fixture(scope="session")
def airflow_stack(
    tmp_path_factory: pytest.TempPathFactory, seaweedfs: SeaweedFS, simulator_server: Simulator
) -> Iterator[Airflow]:
    """The session's one Airflow, with the example DAGs and those in ``tests/integration/dags``.

    Its connections lead to ``simulator`` (ask for that too: it resets the ledger) and
    ``seaweedfs``; its Variable ``getimg_bucket`` names ``STACK_BUCKET``; nothing is scheduled.
    """
    seaweedfs.create_bucket(STACK_BUCKET)
    folders = [REPOSITORY / "dags", REPOSITORY / "tests" / "integration" / "dags"]
    with Airflow(
        tmp_path_factory.mktemp("airflow"),
        [folder for folder in folders if folder.is_dir()],
        env={
            "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
            "AIRFLOW_CONN_GETIMG_DEFAULT": simulator_server.connection(),
            "AIRFLOW_VAR_GETIMG_BUCKET": STACK_BUCKET,
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        },
    ) as airflow:
        airflow.create_pool("getimg", 4)
        yield airflow


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser for the browser tests; without one they are skipped, in CI they fail."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    message = f"no browser: none of {', '.join(CHROMIUM_NAMES)} is installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
