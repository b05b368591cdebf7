# SPDX-License-Identifier: Apache-2.0
"""Asset events of saved objects in a real Airflow: which DAGs they queue, and that they never fail a save."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devstack import StackError
from tests.conftest import STACK_BUCKET

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow, SeaweedFS


def queued(airflow: Airflow, dag_id: str) -> list[str]:
    """Return the URIs of the events queued for the DAG's next run, which this Airflow never starts."""
    assets = airflow.request("GET", "/assets", params={"dag_ids": dag_id})["assets"]
    try:
        events = airflow.request("GET", f"/dags/{dag_id}/assets/queuedEvents")["queued_events"]
    except StackError:
        # An empty queue is a 404.
        return []
    uris = {asset["id"]: asset["uri"] for asset in assets}
    return [uris[event["asset_id"]] for event in events]


@pytest.mark.parametrize(
    ("dag_id", "key", "uri"),
    [
        pytest.param("assets_read_by_name", "assets/poster.png", "assets/poster.png", id="name of its own"),
        pytest.param(
            "assets_read_by_uri", "assets/länge 1.png", "assets/l%C3%A4nge%201.png", id="encoded URI"
        ),
    ],
)
def test_saving_an_object_queues_its_asset_event_for_the_dag_scheduled_on_it(
    airflow_stack: Airflow, simulator: GetimgSimulator, run, dag_id, key, uri
):
    airflow_stack.wait_for_dag(dag_id)
    airflow_stack.unpause(dag_id)
    assert queued(airflow_stack, dag_id) == []
    assert run("assets_write", key=key).state == "success"
    assert queued(airflow_stack, dag_id) == [f"s3://{STACK_BUCKET}/{uri}"]


def test_object_whose_asset_event_airflow_cannot_store_is_still_saved_in_one_try(
    simulator: GetimgSimulator, seaweedfs: SeaweedFS, run
):
    key = f"{'中' * 85}/{'文' * 83}.png"
    assert len(key.encode()) <= 510
    written = run("assets_write", key=key)
    assert written.state == "success"
    assert written.tries("save") == 1
    assert f"{key} is saved, but has no asset event: " in written.log("save")
    [row] = written.xcom("save")
    head = seaweedfs.client().head_object(Bucket=STACK_BUCKET, Key=key)
    assert head["ContentLength"] == row["bytes"]
