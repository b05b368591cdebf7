# SPDX-License-Identifier: Apache-2.0
"""
A separate Airflow for the tests.

Airflow reads ``AIRFLOW_HOME`` once, on import, and test modules import it at the top: so this must run before pytest
loads any conftest.py or test.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

Mode = Literal["isolated", "own"]

#: The modules in which Airflow reads its configuration.
CONFIGURATION_MODULES = ("airflow.configuration", "airflow.sdk.configuration", "airflow.settings")


class IsolationError(Exception):
    """Airflow can no longer be isolated: it has already been imported."""


class _State:
    home: Path | None = None
    removed: dict[str, str]


def isolated_home() -> Path | None:
    """Return the temporary ``AIRFLOW_HOME`` of this process, if there is one."""
    return _State.home


def isolate_airflow() -> Path:
    """
    Give this process its own Airflow: a temporary home, SQLite, nothing of the user's.

    Every environment variable that begins with ``AIRFLOW`` is removed until :func:`restore_environment`: in a test, a
    connection, a secrets backend or a database from the user's shell could cost money or data. The directory is
    deleted when the process ends. Further calls have no effect.

    :raises IsolationError: Airflow has already been imported, and has read its home.
    """
    if _State.home is not None:
        return _State.home
    if imported := [name for name in CONFIGURATION_MODULES if name in sys.modules]:
        raise IsolationError(
            f"Airflow can't be isolated: {imported[0]} was imported before pytest loaded the first conftest.py, "
            "by another plugin or by '-p'; set getimg_airflow = own to use that Airflow."
        )
    _State.removed = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AIRFLOW")}
    home = Path(tempfile.mkdtemp(prefix="airflow-getimg-tests-"))
    # Registered before Airflow's own handlers, so it runs after them. Forked processes must not delete the home.
    atexit.register(_remove, home, os.getpid())
    (home / "dags").mkdir()
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    }
    _State.home = home
    return home


def restore_environment() -> None:
    """Restore the variables that :func:`isolate_airflow` removed. An Airflow already imported stays as it is."""
    if _State.home is None:
        return
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        del os.environ[name]
    os.environ |= _State.removed
    _State.home = None


def _remove(home: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(home, ignore_errors=True)
