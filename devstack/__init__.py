# SPDX-License-Identifier: Apache-2.0
"""Local servers for the demo, the tests and the benchmarks. Not part of the wheel.

Each is a context manager that starts a real process on free loopback ports, waits until it
responds, and terminates its whole process tree at the end.
"""

from __future__ import annotations

from devstack.process import GuardedProcess, StackError
from devstack.seaweedfs import SeaweedFS
from devstack.standalone import Airflow

__all__ = ["Airflow", "GuardedProcess", "SeaweedFS", "StackError"]
