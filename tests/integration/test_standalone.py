# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib

import psutil


def test_nothing_listens_beyond_loopback(airflow_stack, seaweedfs):
    """Anyone who can connect to this Airflow is its administrator."""
    listening = set()
    for process in (airflow_stack.process, seaweedfs.process):
        for child in psutil.Process(process.pid).children(recursive=True):
            # A process that parses a DAG file can end at any moment.
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = child.net_connections("inet")
                listening |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
