# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from devstack import Simulator


class Store:
    """Airflow's task state store in memory: JSON in, JSON out. The real one is in ``tests/integration``."""

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
    """Make the context of a try: what an operator reads of it, over one store."""

    def make(try_number: int = 1, max_tries: int = 3) -> dict[str, Any]:
        ti = SimpleNamespace(try_number=try_number, max_tries=max_tries)
        return {"ti": ti, "task_state_store": store}

    return make


@pytest.fixture
def getimg_default(monkeypatch: pytest.MonkeyPatch, simulator: Simulator) -> Simulator:
    """Lead the connection ``getimg_default`` to the simulator."""
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", simulator.connection())
    return simulator
