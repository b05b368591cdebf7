# SPDX-License-Identifier: Apache-2.0
"""Users who may read some DAGs only, which Airflow's simple auth manager doesn't have."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

ONLY = "only-"


class PerDagAuthManager(SimpleAuthManager):
    """A user whose name is ``only-DAG`` may read that DAG; the role decides for all others."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        """Whether this user may; without an id: whether there is any DAG that they may."""
        allowed = super().is_authorized_dag(user=user, details=details, **kwargs)
        dag_id = details.id if details is not None else None
        return allowed and (
            dag_id is None or not user.username.startswith(ONLY) or user.username == ONLY + dag_id
        )
