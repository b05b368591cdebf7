# SPDX-License-Identifier: Apache-2.0
"""A test kit for your own DAGs: pytest fixtures backed by the simulator. Nothing is billed.

The fixtures are ``getimg_simulator``, ``getimg_conn`` and ``run_dag``; pytest finds them on its own. The classes here
are for annotations. Requires the extra ``[testing]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_getimg.testing.connection import GetimgConnection
    from airflow_provider_getimg.testing.dag_run import DagRunner, DagRunResult
    from airflow_provider_getimg.testing.isolation import isolate_airflow
    from airflow_provider_getimg.testing.server import SimulatorError
    from airflow_provider_getimg.testing.simulator import Faults, GetimgSimulator, LoggedRequest, RequestLog

__all__ = [
    "DagRunResult",
    "DagRunner",
    "Faults",
    "GetimgConnection",
    "GetimgSimulator",
    "LoggedRequest",
    "RequestLog",
    "SimulatorError",
    "isolate_airflow",
]
_HOMES = {
    "DagRunResult": "dag_run",
    "DagRunner": "dag_run",
    "Faults": "simulator",
    "GetimgConnection": "connection",
    "GetimgSimulator": "simulator",
    "LoggedRequest": "simulator",
    "RequestLog": "simulator",
    "SimulatorError": "server",
    "isolate_airflow": "isolation",
}


def __getattr__(name: str) -> Any:
    # Lazy: every pytest in the environment loads the plugin, and with it this module.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
