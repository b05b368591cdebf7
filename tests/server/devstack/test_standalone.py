# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from devstack import StackError

if TYPE_CHECKING:
    from devstack import Airflow


def test_every_component_listens_on_loopback_alone(airflow_stack: Airflow) -> None:
    assert airflow_stack.process is not None
    addresses = {
        connection.laddr.ip
        for child in psutil.Process(airflow_stack.process.pid).children(recursive=True)
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_dag_that_is_not_there_is_reported(airflow_stack: Airflow) -> None:
    with pytest.raises(StackError, match=r"No DAG no_such_dag after 0\.5 s"):
        airflow_stack.wait_for_dag("no_such_dag", timeout=0.5)


def test_refusal_of_the_api_is_reported(airflow_stack: Airflow) -> None:
    with pytest.raises(StackError, match="404"):
        airflow_stack.trigger("no_such_dag")
