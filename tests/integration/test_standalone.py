# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import psutil


def test_nothing_listens_beyond_loopback(airflow_stack, seaweedfs):
    """Whoever can connect to this Airflow is its administrator."""
    listening = {
        connection.laddr.ip
        for process in (airflow_stack.process, seaweedfs.process)
        for child in psutil.Process(process.pid).children(recursive=True)
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
