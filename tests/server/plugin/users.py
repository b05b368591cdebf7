# SPDX-License-Identifier: Apache-2.0
"""Users who may read some DAGs only, which Airflow's simple auth manager doesn't have."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

ONLY = "only-"
NO_XCOMS = "no-xcoms-of-"


class PerDagAuthManager(SimpleAuthManager):
    """
    A user whose name is ``only-DAG`` may read that DAG, and one named ``no-xcoms-of-DAG`` all but its XComs.

    The role decides for all others.
    """

    def is_authorized_dag(
        self, *, user: Any, details: Any = None, access_entity: Any = None, **kwargs: Any
    ) -> bool:
        """Whether this user may; without an id: whether there is any DAG that they may."""
        allowed = super().is_authorized_dag(user=user, details=details, access_entity=access_entity, **kwargs)
        dag_id = details.id if details is not None else None
        if dag_id is None:
            return allowed
        if user.username.startswith(ONLY):
            return allowed and user.username == ONLY + dag_id
        return allowed and not (access_entity is DagAccessEntity.XCOM and user.username == NO_XCOMS + dag_id)
