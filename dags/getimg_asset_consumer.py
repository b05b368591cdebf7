# SPDX-License-Identifier: Apache-2.0
"""
A DAG that runs whenever new pictures arrive in S3.

It shows asset scheduling: ``getimg_daily_image`` declares ``AssetAlias("getimg_pictures")`` as an outlet of its
transfer, each saved object becomes an asset event of that alias, and this DAG is scheduled on it. The events
hold the object's URI, its generation, cost, size and SHA-256, but never a signed URL.

It needs nothing but a run of ``getimg_daily_image``. Safe to run twice: it only reads the events that triggered
it, and returns a line for each picture.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, AssetAlias, task

with DAG(
    dag_id="getimg_asset_consumer",
    schedule=[AssetAlias("getimg_pictures")],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["getimg", "example"],
    doc_md=__doc__,
):

    @task
    def list_pictures(triggering_asset_events: Any = None) -> list[str]:
        """Return a line for each new picture; a real DAG would publish or index it."""
        # Each triggering event appears twice: under its asset, and under the alias.
        events = triggering_asset_events[AssetAlias("getimg_pictures")]
        return [
            f"{event.asset.uri}: {event.extra['bytes']} bytes, {event.extra['cost_usd']} USD"
            for event in events
        ]

    list_pictures()
