# SPDX-License-Identifier: Apache-2.0
"""
The gallery and the spend page in Airflow's UI.

Every process loads this module; heavy imports wait until the API server needs them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin


class GetimgPlugin(AirflowPlugin):
    """Adds "Images" and "Image spend" to Airflow's Browse menu."""

    name = "getimg"
    # Without a url_route, each opens as a separate page: inside Airflow's frame, links could not open a task's log.
    external_views = [
        {"name": "Images", "href": "getimg/images/", "destination": "nav", "category": "browse"},
        {"name": "Image spend", "href": "getimg/spend/", "destination": "nav", "category": "browse"},
    ]

    # Airflow reads these two only in the API server: a task process never imports what they need.

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The pages, under ``/getimg``."""
        from airflow_provider_getimg.plugin.app import create_app

        return [{"app": create_app(), "url_prefix": "/getimg", "name": "getimg"}]

    @cached_property
    def fastapi_root_middlewares(self) -> list[Any]:  # type: ignore[override]
        """The middleware that gives the pages access to Airflow's own API."""
        from airflow_provider_getimg.plugin.airflow_api import AirflowAppMiddleware

        return [{"middleware": AirflowAppMiddleware, "args": [], "kwargs": {}, "name": "getimg"}]
