# SPDX-License-Identifier: Apache-2.0
"""The simulator's command, which :class:`~airflow_provider_getimg.testing.server.SimulatorProcess` runs."""

from __future__ import annotations

from airflow_provider_getimg.simulator.__main__ import main

__all__ = ["main"]
