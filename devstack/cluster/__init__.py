# SPDX-License-Identifier: Apache-2.0
"""The services of ``docker-compose.yaml`` as processes on loopback, without a container engine."""

from __future__ import annotations

from devstack.cluster.cluster import Cluster
from devstack.cluster.component import Component
from devstack.cluster.memory import Memory

__all__ = ["Cluster", "Component", "Memory"]
