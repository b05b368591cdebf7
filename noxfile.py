# SPDX-License-Identifier: Apache-2.0
"""
Tests the provider's wheel where this repository can't be imported: ``make test-matrix`` and ``make release-check``.

A session of ``matrix`` is a cell of ``docs/versions.md``: a Python and a set of versions. It writes its result to
``.matrix/results/``, from which ``make versions`` updates the page. ``release`` uses the wheel in ``dist/``, and nothing else.
A command's output is shown if it fails. A cell that failed keeps its environment.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

import nox

from devstack.example_dags import run_example_dags
from devstack.network import clean_environment

REPOSITORY = Path(__file__).parent
PACKAGE = "airflow_provider_getimg"
PROJECT = nox.project.load_toml("pyproject.toml")
RESULTS = REPOSITORY / ".matrix" / "results"
# Options of `uv pip compile` and bounds, in addition to the project's own. Airflow 3.3.0 was released on 6 July 2026, 3.2.2 and 3.1.8
# shortly before the dates here. 3.1.2 is from November 2025, when no release of common.compat was recent enough. With PyJWT 2.11,
# logging in to Airflow 3.1.2 fails.
MARCH = "--exclude-newer=2026-03-14T00:00:00Z"
SETS = {
    "3.1.2": ([MARCH], "apache-airflow==3.1.2\npyjwt<2.11"),
    "3.1.8": ([MARCH], "apache-airflow==3.1.8"),
    "3.2.2": (["--exclude-newer=2026-05-31T00:00:00Z"], "apache-airflow==3.2.2"),
    "3.3.0": (["--exclude-newer=2026-07-08T00:00:00Z"], "apache-airflow==3.3.0"),
    "newest": ([], "apache-airflow>=3.3,<3.4"),
    "lowest": (["--resolution=lowest-direct", MARCH], "pyjwt<2.11"),
}
STAGED = ("dags", "devstack", "tests")
# Tests that need a file of the repository outside STAGED, a browser, or a whole Airflow, and those of the S3 fault proxy, which
# does not depend on Airflow: with the aiohttp of March 2026 they take three minutes.
ELSEWHERE = (
    "devstack",
    "test_architecture.py",
    "test_compose.py",
    "test_conformance_wheel.py",
    "test_docs*.py",
    "test_s3_faults.py",
)
TESTS = ("tests/unit", "tests/server", "tests/integration/test_transfer.py")
VERSIONS = f"""
import importlib.metadata, json, platform, {PACKAGE}
found = {{package.name: package.version for package in importlib.metadata.distributions()}}
print(json.dumps({{"python": platform.python_version(), "provider": {PACKAGE}.__file__}} | found))
"""

# Nox would show the logs of boto3 and httpx.
logging.disable(logging.DEBUG)
logging.getLogger("httpx").setLevel(logging.WARNING)
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.envdir = ".matrix"


@nox.session(python=nox.project.python_versions(PROJECT))
@nox.parametrize("versions", [nox.param(name, id=name, tags=[name]) for name in SETS])
def matrix(session: nox.Session, versions: str) -> None:
    """Run the package's tests and the example DAGs on a set of versions."""
    result = RESULTS / f"{session.python}-{versions}.json"
    result.unlink(missing_ok=True)
    folder = isolate(session)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir=dist"]
    session.run(*build, REPOSITORY, external=True, silent=True)
    [wheel] = Path("dist").glob("*.whl")
    options, bound = SETS[versions]
    Path("bounds.txt").write_text(bound)
    # The project's own bounds first, then the tools on top: a tool that is newer than the set, or wants a newer
    # library, must not change what is tested.
    session.run_install(
        *("uv", "pip", "compile", "--quiet", "--extra=testing", f"--python={session.python}"),
        *("--constraints=bounds.txt", "--output-file=pins.txt", *options, str(REPOSITORY / "pyproject.toml")),
        silent=True,
    )
    session.install("--requirements=pins.txt", str(wheel), *nox.project.dependency_groups(PROJECT, "cell"))
    found = checked_versions(session)
    cell = {"set": versions, "versions": found, "passed": False, "day": datetime.now(UTC).date().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    result.write_text(json.dumps(cell))

    for name in STAGED:
        shutil.copytree(REPOSITORY / name, name, ignore=shutil.ignore_patterns(*ELSEWHERE))
    shutil.copy(REPOSITORY / "pyproject.toml", "pyproject.toml")
    session.run(
        *("python", "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", "--junitxml=tests.xml"),
        *("-o", "faulthandler_timeout=1800", "-o", "faulthandler_exit_on_timeout=true", *TESTS),
        silent=True,
    )
    [suite] = ElementTree.parse("tests.xml").iter("testsuite")
    cell["tests"] = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    cell["dags"] = example_dags(session, folder, found["apache-airflow"])
    result.write_text(json.dumps(cell | {"passed": True}))
    session.log(f"{cell['tests']} tests passed, {cell['dags']} example DAGs ran")
    # Byte code is not hard-linked: nine environments would take gigabytes.
    shutil.rmtree(session.virtualenv.location)


@nox.session
def release(session: nox.Session) -> None:
    """Install the wheel in dist/ with what it and the example DAGs require, and run the DAGs."""
    [wheel] = (REPOSITORY / "dist").glob("*.whl")
    folder = isolate(session)
    # One of them reads a table; a user would install the provider of their own database.
    session.install(f"{wheel}[simulator]", "apache-airflow-providers-sqlite")
    found = checked_versions(session)
    listed = session.run(
        "airflow", "providers", "list", "--output=json", silent=True, env={"AIRFLOW_HOME": str(folder)}
    )
    if "airflow-provider-getimg" not in str(listed):
        session.error(f"Airflow does not list the provider: {listed}")
    example_dags(session, folder, found["apache-airflow"])


def isolate(session: nox.Session) -> Path:
    """Change to an empty folder, with an environment that refers neither to this repository nor to the user's accounts."""
    folder = Path(f"{session.virtualenv.location}-files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.chdir(folder)
    session.env.update(dict.fromkeys([*os.environ.keys() - clean_environment().keys(), "PYTHONPATH"]))
    return folder


def checked_versions(session: nox.Session) -> dict[str, str]:
    """Return the installed versions, after checking that they are compatible and that the provider is the wheel's."""
    session.run("uv", "pip", "check", silent=True)
    found: dict[str, str] = json.loads(str(session.run("python", "-c", VERSIONS, silent=True)))
    if not Path(found.pop("provider")).is_relative_to(session.virtualenv.location):
        session.error("The provider is not imported from its wheel.")
    return found


def example_dags(session: nox.Session, folder: Path, airflow: str) -> int:
    """Run the example DAGs, before Airflow 3.3 with a state folder in S3, and return how many there are."""
    venv = Path(session.virtualenv.location)
    needs_folder = airflow.startswith(("3.1.", "3.2."))
    ran = list(run_example_dags(venv, folder / "airflow", REPOSITORY / "dags", state_folder=needs_folder))
    for dag, saved in ran:
        session.log(f"{dag} ran: images saved and paid for: {saved}")
    return len(ran)
