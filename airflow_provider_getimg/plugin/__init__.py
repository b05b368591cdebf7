# SPDX-License-Identifier: Apache-2.0
"""
The gallery and the spend page in Airflow's UI.

Every process loads this module; all that is heavy waits until the API server asks for it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin


class GetimgPlugin(AirflowPlugin):
    """Adds "Images" and "Image spend" to Airflow's Browse menu."""

    name = "getimg"
    # Without a url_route it opens as a page of its own: Airflow's frame would keep links from leading to a task's log.
    external_views = [
        {"name": "Images", "href": "getimg/images/", "destination": "nav", "category": "browse"},
        {"name": "Image spend", "href": "getimg/spend/", "destination": "nav", "category": "browse"},
    ]

    # Airflow reads these two in the API server alone: a task process never imports what they need.

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The pages, under ``/getimg``."""
        from airflow_provider_getimg.plugin.app import create_app

        return [{"app": create_app(), "url_prefix": "/getimg", "name": "getimg"}]

    @cached_property
    def fastapi_root_middlewares(self) -> list[Any]:  # type: ignore[override]
        """What tells the pages where Airflow's own API is."""
        from airflow_provider_getimg.plugin.airflow_api import AirflowAppMiddleware

        return [{"middleware": AirflowAppMiddleware, "args": [], "kwargs": {}, "name": "getimg"}]
