# SPDX-License-Identifier: Apache-2.0
"""
Checks what a release would be: its files, its metadata, and that it works where nothing else is installed.

``python -m devstack.release_check``, or ``make release-check``. One line per check; the first that fails ends it.
Everything is built and run in a temporary folder, so that nothing of this repository can be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.network import clean_environment
from devstack.process import StackError
from devstack.release_check_build import build, checked_metadata, differences, digests, unpack
from devstack.release_check_dags import run_example_dags

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "airflow_provider_getimg"
UV = Path(sys.executable).with_name("uv")
STEP_SECONDS = 600.0
# Beside the package, what whoever builds from the sdist needs, or wants to read.
IN_SDIST = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def checks(folder: Path) -> Iterator[str]:
    """Yield a line for each check that holds.

    :param folder: An empty one, outside the repository.
    :raises devstack.StackError: One does not hold.
    """
    sdist = build("sdist", REPOSITORY, folder / "dist")
    source = unpack(sdist, folder / "sdist")
    missing = {name for name in IN_SDIST if not (source / name).is_file()}
    missing |= {f"dags/{path.name}" for path in (REPOSITORY / "dags").glob("*.py")} - {
        f"dags/{path.name}" for path in (source / "dags").glob("*.py")
    }
    if missing:
        raise StackError(f"The sdist lacks {', '.join(sorted(missing))}.")
    yield f"{sdist.name} has the package, its licence, its changelog and the example DAGs"

    wheel = build("wheel", REPOSITORY, folder / "dist")
    again = build("wheel", source, folder / "from-sdist")
    if different := differences(digests(wheel), digests(again)):
        raise StackError(f"The wheel that the sdist builds differs: {', '.join(different)}.")
    yield f"{wheel.name} has {len(digests(wheel))} files, and the sdist builds the very same"

    metadata = checked_metadata(wheel)
    extras = ", ".join(sorted(metadata.provides_extra or []))
    yield f"the metadata is valid, the README renders (version {metadata.version}; extras {extras})"

    venv = folder / "venv"
    python = str(venv / "bin" / "python")
    _run(folder, str(UV), "venv", f"--python={sys.executable}", str(venv))
    _run(folder, str(UV), "pip", "install", f"--python={python}", f"{wheel}[simulator]")
    _run(folder, str(UV), "pip", "check", f"--python={python}")
    installed = _run(folder, str(UV), "pip", "list", "--format=freeze", f"--python={python}")
    yield f"it installs into an empty environment: {len(installed.split())} packages that fit each other"

    where = _run(folder, python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)").strip()
    if not where.startswith(str(venv)):
        raise StackError(f"The package is imported from {where}.")
    home = {"AIRFLOW_HOME": str(folder / "look"), "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    listed = json.loads(
        _run(folder, str(venv / "bin" / "airflow"), "providers", "list", "-o", "json", **home)
    )
    versions = {entry["package_name"]: entry["version"] for entry in listed}
    if versions.get("airflow-provider-getimg") != str(metadata.version):
        raise StackError(f"Airflow does not list it: {versions}")
    yield "Airflow lists it there"

    for dag, saved in run_example_dags(venv, folder / "airflow", source / "dags"):
        yield f"{dag} ran there: images saved and paid for: {saved}"


def _run(folder: Path, *command: str, **env: str) -> str:
    """Run a command and return its standard output."""
    environment = clean_environment() | {"UV_NO_PROGRESS": "1"} | env
    for name in ("VIRTUAL_ENV", "PYTHONPATH"):
        environment.pop(name, None)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"{' '.join(command)} took over {STEP_SECONDS:.0f} s.") from None
    if done.returncode != 0:
        raise StackError(f"{' '.join(command)} failed:", (done.stdout + done.stderr)[-4000:])
    return done.stdout


def main() -> int:
    """Run the command line in the module's docstring."""
    with tempfile.TemporaryDirectory(prefix="getimg-release-") as folder:
        started = time.monotonic()
        try:
            for line in checks(Path(folder)):
                print(f"ok {time.monotonic() - started:6.1f} s  {line}", flush=True)
        except StackError as error:
            print(f"FAILED {time.monotonic() - started:.1f} s  {error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
