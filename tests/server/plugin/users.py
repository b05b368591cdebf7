# SPDX-License-Identifier: Apache-2.0
"""An auth manager whose users may read only some DAGs, which Airflow's simple auth manager doesn't support."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

ONLY = "only-"
NO_XCOMS = "no-xcoms-of-"


class PerDagAuthManager(SimpleAuthManager):
    """
    The user ``only-DAG`` may read that DAG alone, and ``no-xcoms-of-DAG`` everything except that DAG's XComs.

    Otherwise the role decides.
    """

    def is_authorized_dag(
        self, *, user: Any, details: Any = None, access_entity: Any = None, **kwargs: Any
    ) -> bool:
        """Return whether the user may access this DAG or, without an ID, any DAG."""
        allowed = super().is_authorized_dag(user=user, details=details, access_entity=access_entity, **kwargs)
        dag_id = details.id if details is not None else None
        if dag_id is None:
            return allowed
        if user.username.startswith(ONLY):
            return allowed and user.username == ONLY + dag_id
        return allowed and not (access_entity is DagAccessEntity.XCOM and user.username == NO_XCOMS + dag_id)
