# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: real local servers, started when the first test needs one.

Before anything else, it isolates the tests' environment: no ``~/airflow``, and no credentials or keys of
the user who runs them.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.testing.isolation import isolate_airflow


def isolate_environment() -> None:
    """Point Airflow and boto3 away from the user's own files, before Airflow is imported."""
    home = isolate_airflow()
    for name in list(os.environ):
        if name.startswith(("AWS_", "GETIMG_", "DEMO_S3_")):
            del os.environ[name]
    os.environ |= {
        "AWS_CONFIG_FILE": str(home / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "no-aws-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


isolate_environment()

# A shell makes its background jobs ignore SIGINT, and all their children inherit that. Some tests send SIGINT to a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from botocore.loaders import JSONFileLoader  # noqa: E402

from airflow_provider_getimg.version_compat import HAS_TASK_STATE_STORE  # noqa: E402
from devstack import Airflow, SeaweedFS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.testing import GetimgConnection, GetimgSimulator

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
# The marker of each folder's tests.
TIERS = {"unit": "unit", "server": "server", "integration": "airflow", "browser": "browser"}
# The bucket of the Airflow Variable ``getimg_bucket`` in ``airflow_stack``.
STACK_BUCKET = "getimg-stack"
STATE_BUCKET = "getimg-stack-state"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# botocore's description of S3 is cached: reading it takes a fifth of a second for each test that creates a session.
_read_json = functools.cache(functools.partial(JSONFileLoader.load_file, JSONFileLoader()))
JSONFileLoader.load_file = lambda self, file_path: _read_json(file_path)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--state-folder",
        action="store_true",
        default=not HAS_TASK_STATE_STORE,
        help="let the real Airflow's tasks keep the state of paid requests in S3, as Airflow 3.1 and 3.2 must",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and group tests for runs in several processes.

    The files that need ``airflow_stack`` are split between two groups, each with its own Airflow. Every other file is a group. The
    slowest tests come first: the cluster's, then those two groups.
    """
    for item in items:
        item.add_marker(TIERS[item.path.relative_to(TESTS).parts[0]])
    # An option that pytest-xdist sets in its workers under `--dist loadgroup`.
    if config.getoption("loadgroup", False):
        stack_files = sorted({item.path for item in items if _needs_stack(item)})
        for item in items:
            is_dealt = _needs_stack(item)
            group = f"airflow{stack_files.index(item.path) % 2}" if is_dealt else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))
        items.sort(key=lambda item: (item.path.name == "test_cluster.py", _needs_stack(item)), reverse=True)


def _needs_stack(item: pytest.Item) -> bool:
    return "airflow_stack" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """A real S3 server, shared by the whole session."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> Iterator[str]:
    """A new, empty bucket on ``seaweedfs``, deleted after the test because each takes up disk space."""
    name = seaweedfs.create_bucket(f"test-{uuid.uuid4().hex[:12]}")
    yield name
    client = seaweedfs.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=entry["Key"])
    client.delete_bucket(Bucket=name)


# Shorter names for the test kit's simulator and connection (airflow_provider_getimg.testing.plugin, which pytest loads
# through its entry point).
@pytest.fixture(scope="session")
def simulator_server(getimg_simulator_server: GetimgSimulator) -> GetimgSimulator:
    """The session's simulator; tests take ``simulator``."""
    return getimg_simulator_server


@pytest.fixture
def simulator(getimg_simulator: GetimgSimulator) -> GetimgSimulator:
    """The simulator as if just started: no requests, no faults, default settings."""
    return getimg_simulator


@pytest.fixture(scope="session")
def state_extra(pytestconfig: pytest.Config, seaweedfs: SeaweedFS) -> dict[str, str]:
    """The extra of a connection in ``airflow_stack`` that sets where the state is kept."""
    if not pytestconfig.getoption("state_folder"):
        return {}
    return {"state_folder": f"s3://{seaweedfs.create_bucket(STATE_BUCKET)}/state"}


@pytest.fixture(scope="session")
def airflow_stack(
    tmp_path_factory: pytest.TempPathFactory,
    seaweedfs: SeaweedFS,
    simulator_server: GetimgSimulator,
    state_extra: dict[str, str],
) -> Iterator[Airflow]:
    """The session's one Airflow, with the example DAGs and those in ``tests/integration/dags``.

    Its connections lead to ``simulator`` (request that fixture too: it resets the ledger) and
    ``seaweedfs``; its Variable ``getimg_bucket`` names ``STACK_BUCKET``; nothing is scheduled.
    """
    seaweedfs.create_bucket(STACK_BUCKET)
    folders = [REPOSITORY / "dags", REPOSITORY / "tests" / "integration" / "dags"]
    with Airflow(
        tmp_path_factory.mktemp("airflow"),
        [folder for folder in folders if folder.is_dir()],
        env={
            "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
            "AIRFLOW_CONN_GETIMG_DEFAULT": simulator_server.process.connection(**state_extra),
            "AIRFLOW_VAR_GETIMG_BUCKET": STACK_BUCKET,
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
            # Parsed only when changed: parsing all of them every 20 seconds would take half a core.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        },
    ) as airflow:
        airflow.create_pool("getimg", 4)
        yield airflow


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser for the browser tests. Without one they are skipped, or fail in CI."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    message = f"no browser: none of {', '.join(CHROMIUM_NAMES)} is installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Store:
    """Airflow's task state store in memory: JSON in, JSON out. ``tests/integration`` uses the real one."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.broken = False

    def get(self, key: str, default: Any = None) -> Any:
        self._check()
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._check()
        self.values[key] = json.dumps(value, allow_nan=False)

    def delete(self, key: str) -> None:
        self._check()
        self.values.pop(key, None)

    def _check(self) -> None:
        if self.broken:
            raise ConnectionError("the API server is away")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def context(store: Store):
    """Return a function that makes the context of a try; all tries share a store."""

    from airflow.sdk.execution_time.context import OutletEventAccessors

    xcoms: dict[str, Any] = {}

    def make(try_number: int = 1, max_tries: int = 3) -> dict[str, Any]:
        ti = SimpleNamespace(
            try_number=try_number,
            max_tries=max_tries,
            dag_id="a_dag",
            run_id="manual__2026-01-01T00:00:00+00:00",
            task_id="a_task",
            map_index=-1,
            xcom_push=lambda key, value: xcoms.update({key: value}),
        )
        return {"ti": ti, "task_state_store": store, "outlet_events": OutletEventAccessors()}

    make.xcoms = xcoms
    return make


@pytest.fixture
def getimg_default(getimg_conn: GetimgConnection, simulator: GetimgSimulator) -> GetimgSimulator:
    """Make the connection ``getimg_default`` lead to the simulator."""
    return simulator
