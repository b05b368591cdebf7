# SPDX-License-Identifier: Apache-2.0
"""The test kit as users run it: in a separate pytest process, outside this repository and its conftest.py."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = REPOSITORY / "docs" / "testing-your-dags.md"
ISOLATED = "[pytest]\ngetimg_airflow = isolated\n"
USES_RUN_DAG = "def test_it(run_dag):\n    pass\n"


class Outcome:
    """The output and the exit code of a pytest run."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.text = process.stdout + process.stderr

    def counts(self) -> dict[str, int]:
        summary = self.text.rstrip().splitlines()[-1]
        return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", summary)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's home directory, where their real Airflow would be."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def user_pytest(tmp_path: Path, home: Path) -> Callable[..., Outcome]:
    """Return a function that runs pytest on files in a user's environment, without this session's settings."""

    def run(files: dict[str, str], *options: str, **env: str) -> Outcome:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        # Without a pytest.ini, pytest would look for its configuration in the parent folders.
        for name, text in {"pytest.ini": "[pytest]\n", **files}.items():
            (project / name).write_text(text)
        foreign = ("AIRFLOW", "AWS_", "PYTEST", "PYTHON", "COV_", "NO_PROXY", "no_proxy")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
            cwd=project,
            env=inherited | {"HOME": str(home), "TMPDIR": str(tmp_path), **env},
            capture_output=True,
            text=True,
            timeout=240,
        )
        return Outcome(process)

    return run


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("airflow-*"))


def page_blocks() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    text = PAGE.read_text()
    files = dict(re.findall(r'^```python title="([\w.]+)"\n(.*?)^```', text, re.M | re.S))
    [ini] = re.findall(r"^```ini\n(.*?)^```", text, re.M | re.S)
    # No block is missed because its fence is written differently.
    assert len(files) == len(re.findall(r"^```python", text, re.M))
    return {"pytest.ini": ini, **files}


def test_examples_in_the_testing_guide_pass_and_leave_no_files(user_pytest, tmp_path, home):
    files = page_blocks()
    tests = [name for text in files.values() for name in re.findall(r"^def (test_\w+)", text, re.M)]
    # Neither may be used: no proxy exists at that address, and no account has that key.
    outcome = user_pytest(
        files,
        HTTP_PROXY="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
        AIRFLOW_CONN_GETIMG_DEFAULT='{"conn_type": "getimg", "password": "sk_real"}',
    )
    assert outcome.counts() == {"passed": len(tests)}, outcome.text
    assert left_behind(tmp_path) == []
    assert list(home.iterdir()) == []


PROBE = """
import json, os, sys

def test_probe(request):
    names = [name for name in sys.modules if name.split(".")[0] in ("airflow", "httpx", "fastapi")]
    names += [name for name in sys.modules if name.startswith("airflow_provider_getimg.")]
    print("PROBE", json.dumps({"modules": sorted(names), "airflow": sorted(
        name for name in os.environ if name.startswith(("AIRFLOW", "NO_PROXY")))}))
"""


def test_unused_plugin_imports_no_airflow_and_sets_no_environment_variables(user_pytest, tmp_path):
    outcome = user_pytest({"test_probe.py": PROBE}, "-s", AIRFLOW_HOME="/somewhere")
    assert outcome.counts() == {"passed": 1}
    assert (
        'PROBE {"modules": ["airflow_provider_getimg.testing", "airflow_provider_getimg.testing.plugin"], '
        '"airflow": ["AIRFLOW_HOME"]}'
    ) in outcome.text
    assert left_behind(tmp_path) == []


def test_isolated_mode_hides_the_configured_airflow_before_any_import(user_pytest, tmp_path, home):
    conftest = "from airflow.configuration import AIRFLOW_HOME, conf\nimport os\n"
    test = """
import os, sqlite3
from conftest import AIRFLOW_HOME, conf

def test_home():
    assert AIRFLOW_HOME == os.environ["AIRFLOW_HOME"]
    assert conf.get("database", "sql_alchemy_conn").startswith(f"sqlite:///{AIRFLOW_HOME}/")
    assert not [name for name in os.environ if name.startswith(("AIRFLOW_CONN", "AIRFLOW__SECRETS"))]
    print("HOME", AIRFLOW_HOME)

def test_database(run_dag):
    database = sqlite3.connect(f"{AIRFLOW_HOME}/airflow.db")
    assert database.execute("select count(*) from dag_run").fetchall() == [(0,)]
"""
    outcome = user_pytest(
        {"pytest.ini": ISOLATED, "conftest.py": conftest, "test_home.py": test},
        "-s",
        AIRFLOW_HOME=str(home / "mine"),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/production.db",
        AIRFLOW__SECRETS__BACKEND="no.such.Backend",
        AIRFLOW_CONN_GETIMG_DEFAULT="getimg://:sk_real@",
    )
    assert outcome.counts() == {"passed": 2}, outcome.text
    assert list(home.iterdir()) == []
    [used] = re.findall(r"HOME (\S+)", outcome.text)
    assert not Path(used).exists()


def test_session_starts_one_simulator_and_emits_no_warnings(user_pytest, tmp_path):
    test = """
import os
from pathlib import Path

def test_first(getimg_simulator):
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert len(children) == 1

test_second = test_first
"""
    outcome = user_pytest(
        {"pytest.ini": "[pytest]\nfilterwarnings = error\n", "test_it.py": test}, "-W", "error"
    )
    assert outcome.counts() == {"passed": 2}, outcome.text
    assert "Warning" not in outcome.text


def test_nested_pytest_run_does_not_restore_the_configured_airflow(user_pytest, tmp_path):
    test = """
import os

pytest_plugins = "pytester"

def test_it(pytester):
    home = os.environ["AIRFLOW_HOME"]
    pytester.makeini("[pytest]\\ngetimg_airflow = isolated")
    pytester.makepyfile(test_inner="def test_inner(): pass")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    assert os.environ["AIRFLOW_HOME"] == home
    assert "AIRFLOW_CONN_GETIMG_DEFAULT" not in os.environ
"""
    outcome = user_pytest(
        {"pytest.ini": ISOLATED, "test_it.py": test}, AIRFLOW_CONN_GETIMG_DEFAULT="getimg://:sk_real@"
    )
    assert outcome.counts() == {"passed": 1}, outcome.text
    assert left_behind(tmp_path) == []


VAULT = """
from airflow.sdk import Connection
from airflow.secrets import BaseSecretsBackend

class Vault(BaseSecretsBackend):
    def __init__(self, conn_id):
        self.conn_id = conn_id

    def get_connection(self, conn_id):
        if conn_id == self.conn_id:
            return Connection(conn_id=conn_id, conn_type="getimg", password="sk_real")
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("conn_id", "counts"), [("getimg_default", {"error": 1}), ("another", {"passed": 1})]
)
def test_secrets_backend_that_has_getimg_default_stops_the_test(user_pytest, tmp_path, conn_id, counts):
    test = """
from airflow_provider_getimg.hooks.getimg import GetimgHook

def test_it(getimg_conn, getimg_simulator):
    assert GetimgHook().settings.base_url == getimg_simulator.url
"""
    outcome = user_pytest(
        {"vault.py": VAULT, "test_it.py": test},
        PYTHONPATH=str(tmp_path / "project"),
        AIRFLOW_HOME=str(tmp_path / "airflow"),
        AIRFLOW__SECRETS__BACKEND="vault.Vault",
        AIRFLOW__SECRETS__BACKEND_KWARGS=json.dumps({"conn_id": conn_id}),
    )
    assert outcome.counts() == counts, outcome.text
    refused = "The secrets backend vault.Vault has a connection 'getimg_default', which Airflow takes before"
    assert (refused in outcome.text) is (conn_id == "getimg_default")
    assert "sk_real" not in outcome.text


WRONG: dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...], str]] = {
    "no choice": (
        {"test_it.py": USES_RUN_DAG},
        {},
        (),
        "run_dag must know which Airflow to use: set getimg_airflow = isolated in pytest's configuration",
    ),
    "an unknown choice": (
        {"pytest.ini": "[pytest]\ngetimg_airflow = yes\n", "test_it.py": USES_RUN_DAG},
        {},
        (),
        "ERROR: getimg_airflow must be 'isolated' or 'own', got 'yes'.",
    ),
    "imported too early": (
        {"pytest.ini": ISOLATED, "early.py": "import airflow.configuration\n", "test_it.py": USES_RUN_DAG},
        {},
        ("-p", "early"),
        "ERROR: Airflow can't be isolated: airflow.configuration was imported before pytest loaded",
    ),
    "moved afterwards": (
        {
            "pytest.ini": ISOLATED,
            "conftest.py": "import os\n"
            'os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = "sqlite:////nowhere/airflow.db"\n',
            "test_it.py": USES_RUN_DAG,
        },
        {},
        (),
        "Airflow was isolated, but its database is elsewhere: something sets AIRFLOW_HOME or",
    ),
    "own, without tables": (
        {"pytest.ini": "[pytest]\ngetimg_airflow = own\n", "test_it.py": USES_RUN_DAG},
        {},
        (),
        "run 'airflow db migrate' there, or set getimg_airflow = isolated for a temporary one.",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("files", "env", "options", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_misconfiguration_fails_with_one_sentence_and_no_traceback(
    user_pytest, tmp_path, files, env, options, sentence
):
    outcome = user_pytest(files, *options, PYTHONPATH=str(tmp_path / "project"), **env)
    assert outcome.code != 0
    assert sentence in outcome.text
    assert "Traceback" not in outcome.text
    assert "airflow_provider_getimg/testing" not in outcome.text
    assert left_behind(tmp_path) == []


@pytest.mark.long
def test_own_mode_uses_the_configured_airflow_and_keeps_its_runs(user_pytest, home):
    dag = """
from datetime import datetime
from airflow.sdk import DAG, task

with DAG("mine", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
    @task
    def work():
        return 7
    work()

def test_it(run_dag):
    assert run_dag(dag).xcoms == {"work": 7}
"""
    airflow, bundles = home / "mine", {"first": home / "first", "second": home / "second"}
    for folder in bundles.values():
        folder.mkdir()
    (bundles["second"] / "mine.py").write_text(dag)
    config = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder)},
        }
        for name, folder in bundles.items()
    ]
    env = {
        "AIRFLOW_HOME": str(airflow),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(config),
    }
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            env=os.environ | env | {"HOME": str(home)},
            check=True,
            capture_output=True,
        )
    outcome = user_pytest({"pytest.ini": "[pytest]\ngetimg_airflow = own\n", "test_it.py": dag}, **env)
    assert outcome.counts() == {"passed": 1}, outcome.text
    database = sqlite3.connect(airflow / "airflow.db")
    assert database.execute("select dag_id from dag_run").fetchall() == [("mine",)]
    # The deployment's DAG stays in its own bundle.
    assert database.execute("select dag_id, bundle_name from dag").fetchall() == [("mine", "second")]
