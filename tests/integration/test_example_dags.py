# SPDX-License-Identifier: Apache-2.0
"""The example DAGs in a real Airflow, against the simulator and a real S3 server."""

from __future__ import annotations

import hashlib
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from devstack import Airflow
from tests.conftest import REPOSITORY, STACK_BUCKET

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS


@pytest.fixture
def run(airflow_stack: Airflow):
    """Return a function that runs a DAG to its end and returns the run's id."""

    def run_dag(dag_id: str, **conf: Any) -> str:
        airflow_stack.wait_for_dag(dag_id)
        airflow_stack.unpause(dag_id)
        # Runs triggered by the command line or by assets have no logical date: templates must work without it.
        body = {"logical_date": None, "conf": conf}
        run_id = airflow_stack.request("POST", f"/dags/{dag_id}/dagRuns", body=body)["dag_run_id"]
        state = airflow_stack.wait(dag_id, run_id)
        assert state == "success", airflow_stack.failed_log(dag_id, run_id)
        return run_id

    return run_dag


def stored_picture(seaweedfs: SeaweedFS, row: dict[str, Any]) -> Image.Image:
    """Return the image of a transfer's row, after comparing the object with the row."""
    stored = seaweedfs.client().get_object(Bucket=row["bucket"], Key=row["key"])
    content = stored["Body"].read()
    assert row["uri"] == f"s3://{row['bucket']}/{row['key']}"
    assert row["bytes"] == len(content)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert row["etag"] == stored["ETag"].strip('"')
    assert stored["ContentType"] == row["mime_type"]
    picture = Image.open(io.BytesIO(content))
    picture.load()
    assert picture.size == (row["width"], row["height"])
    return picture


def test_daily_image_dag_saves_a_png_and_returns_the_response(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, run
):
    run_id = run("getimg_daily_image")
    response = airflow_stack.xcom("getimg_daily_image", run_id, "generate_image")
    [row] = airflow_stack.xcom("getimg_daily_image", run_id, "save_to_s3")
    picture = stored_picture(seaweedfs, row)
    assert picture.format == "PNG"
    assert picture.width / picture.height == pytest.approx(3 / 2, rel=0.01)
    [post] = simulator.ledger.raw()["posts"]
    assert post["prompt"].startswith("A postcard for ")
    assert set(response) == {"id", "status", "model", "data", "usage", "request"}
    assert set(response["data"][0]) == {"url", "mime_type", "width", "height", "deletes_at"}
    assert set(response["usage"]) == {"total_cost", "unit_price", "quantity", "billable_unit"}
    assert response["id"] == post["id"] == row["generation_id"]
    assert row["model"] == "seedream-5-lite"
    assert row["index"] == 0
    _, found, log = airflow_stack.task_log("getimg_daily_image", run_id, "generate_image").partition(
        "Generated"
    )
    assert found
    assert "?" not in log


def test_daily_image_dag_emits_one_asset_event_with_cost_and_checksum(
    airflow_stack: Airflow, simulator: GetimgSimulator, run
):
    run_id = run("getimg_daily_image")
    [row] = airflow_stack.xcom("getimg_daily_image", run_id, "save_to_s3")
    events = airflow_stack.request("GET", "/assets/events", params={"source_run_id": run_id})["asset_events"]
    [event] = [event for event in events if event["source_run_id"] == run_id]
    assert event["uri"] == row["uri"]
    assert event["extra"]["cost_usd"] == "0.04"
    assert event["extra"]["sha256"] == row["sha256"]


@pytest.mark.long
def test_asset_consumer_dag_lists_one_line_per_asset_event(
    seaweedfs: SeaweedFS, simulator: GetimgSimulator, bucket: str, tmp_path: Path, state_extra: dict[str, str]
):
    # A separate Airflow that follows schedules: the shared one runs only what the tests trigger.
    env = {
        "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
        "AIRFLOW_CONN_GETIMG_DEFAULT": simulator.process.connection(**state_extra),
        "AIRFLOW_VAR_GETIMG_BUCKET": bucket,
    }
    with Airflow(tmp_path, [REPOSITORY / "dags"], env=env) as airflow:
        for dag_id in ("getimg_asset_consumer", "getimg_daily_image"):
            airflow.wait_for_dag(dag_id)
            airflow.unpause(dag_id)
        run_id = airflow.trigger("getimg_daily_image")
        state = airflow.wait("getimg_daily_image", run_id)
        # The day's scheduled run, which writes the same key, may overlap with it.
        logs = [path.read_text() for path in tmp_path.glob("logs/dag_id=getimg_daily_image/**/*.log")]
        assert state == "success", "\n".join(logs)
        [row] = airflow.xcom("getimg_daily_image", run_id, "save_to_s3")

        expected = f"{row['uri']}: {row['bytes']} bytes, 0.04 USD"

        def finished_run() -> str | None:
            runs = airflow.request("GET", "/dags/getimg_asset_consumer/dagRuns")["dag_runs"]
            for entry in runs:
                run_id: str = entry["dag_run_id"]
                if entry["state"] == "success" and expected in airflow.xcom(
                    "getimg_asset_consumer", run_id, "list_pictures"
                ):
                    return run_id
            return None

        run_id = airflow.poll(finished_run, 180)
        assert run_id
        # There are two events if the day's scheduled run generated the same image.
        lines = airflow.xcom("getimg_asset_consumer", run_id, "list_pictures")
        path = f"/dags/getimg_asset_consumer/dagRuns/{run_id}/upstreamAssetEvents"
        assert len(lines) == airflow.request("GET", path)["total_entries"]


def test_mapped_prompts_dag_saves_a_different_webp_for_each_subject(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, run
):
    run_id = run("getimg_mapped_prompts", subjects=["a bridge", "an owl"])
    rows = airflow_stack.xcom("getimg_mapped_prompts", run_id, "save_to_s3")
    pictures = [stored_picture(seaweedfs, row) for row in rows]
    assert [picture.format for picture in pictures] == ["WEBP", "WEBP"]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert sorted(post["prompt"] for post in simulator.ledger.raw()["posts"]) == [
        "a bridge, as a linocut print in two colours",
        "an owl, as a linocut print in two colours",
    ]
    mapped = [
        task
        for task in airflow_stack.task_instances("getimg_mapped_prompts", run_id)
        if task["task_id"] == "generate_images"
    ]
    assert {task["pool"] for task in mapped} == {"getimg"}
    assert {task["rendered_map_index"] for task in mapped} == {
        post["prompt"] for post in simulator.ledger.raw()["posts"]
    }


def test_reference_images_dag_saves_a_webp_and_renders_the_photo_as_a_uri_not_as_base64(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, run
):
    photo = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(photo, "PNG")
    seaweedfs.client().put_object(Bucket=STACK_BUCKET, Key="photos/p.png", Body=photo.getvalue())
    run_id = run("getimg_reference_images", photo="photos/p.png")
    [row] = airflow_stack.xcom("getimg_reference_images", run_id, "save_to_s3")
    assert stored_picture(seaweedfs, row).format == "WEBP"
    stored = seaweedfs.client().head_object(Bucket=row["bucket"], Key=row["key"])
    assert stored["CacheControl"] == "max-age=86400"
    fields = airflow_stack.rendered_fields("getimg_reference_images", run_id, "generate_image")
    assert f"s3://{STACK_BUCKET}/photos/p.png" in str(fields["images"])
    assert "base64" not in str(fields)


def test_nightly_batch_dag_generates_only_missing_images_in_a_second_run(
    airflow_stack: Airflow, simulator: GetimgSimulator, seaweedfs: SeaweedFS, run
):
    client = seaweedfs.client()
    # The keys contain the day: images of an earlier run would not be generated again.
    for entry in client.list_objects_v2(Bucket=STACK_BUCKET, Prefix="getimg/nightly/").get("Contents", []):
        client.delete_object(Bucket=STACK_BUCKET, Key=entry["Key"])
    run_id = run("getimg_nightly_batch", articles=5, rows_per_task=3)
    summaries = [
        airflow_stack.xcom("getimg_nightly_batch", run_id, "generate_images", map_index=index)
        for index in (0, 1)
    ]
    assert [(summary["requested"], summary["saved"]) for summary in summaries] == [(3, 3), (2, 2)]
    assert len(simulator.ledger) == 5
    again = run("getimg_nightly_batch", articles=6, rows_per_task=3)
    last = airflow_stack.xcom("getimg_nightly_batch", again, "generate_images", map_index=1)
    assert (last["saved"], last["reused"]) == (3, 2)
    assert len(simulator.ledger) == 6
    for uri in summaries[0]["uris"]:
        key = uri.removeprefix(f"s3://{STACK_BUCKET}/")
        picture = Image.open(io.BytesIO(client.get_object(Bucket=STACK_BUCKET, Key=key)["Body"].read()))
        assert picture.format == "WEBP"


@pytest.fixture
def review(airflow_stack: Airflow, simulator: GetimgSimulator):
    """Start a run that waits for the review of two images; return functions that respond, clear the review and list the images."""
    dag_id = "getimg_review_before_publish"
    airflow_stack.wait_for_dag(dag_id)
    airflow_stack.unpause(dag_id)
    run_id = airflow_stack.trigger(dag_id, conf={"subjects": ["a bridge", "an owl"]})
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/review"

    def response(option: str, leave_out: list[str] | None = None) -> dict[str, str]:
        assert airflow_stack.poll(lambda: airflow_stack.waiting_state(dag_id, run_id, "review"), 120)
        # Send what the form sends: before Airflow 3.2, that includes the DAG's params.
        form = airflow_stack.request("GET", f"{path}/-1/hitlDetails")["params"]
        # On 3.1.2, the params are plain values.
        params = {name: param["value"] if isinstance(param, dict) else param for name, param in form.items()}
        body = {"chosen_options": [option], "params_input": {**params, "leave_out": leave_out}}
        airflow_stack.request("PATCH", f"{path}/-1/hitlDetails", body=body)
        assert airflow_stack.wait(dag_id, run_id) == "success", airflow_stack.failed_log(dag_id, run_id)
        return {task["task_id"]: task["state"] for task in airflow_stack.task_instances(dag_id, run_id)}

    def ask_again() -> None:
        airflow_stack.clear(dag_id, run_id, ["review"], include_downstream=True)

    def names() -> list[str]:
        rows = airflow_stack.xcom(dag_id, run_id, "save_to_s3")
        return [row["key"].removeprefix("review/") for row in rows]

    return SimpleNamespace(response=response, ask_again=ask_again, names=names)


def test_review_dag_publishes_only_approved_images_and_unpublishes_rejected_ones(
    review, simulator: GetimgSimulator, seaweedfs: SeaweedFS
):
    client = seaweedfs.client()

    def published() -> list[bool]:
        listed = client.list_objects_v2(Bucket=STACK_BUCKET, Prefix="published/").get("Contents", [])
        return [f"published/{name}" in {entry["Key"] for entry in listed} for name in review.names()]

    def marks() -> list[str]:
        keys = [f"review/{name}" for name in review.names()]
        tags = [client.get_object_tagging(Bucket=STACK_BUCKET, Key=key)["TagSet"] for key in keys]
        return [tag["Value"] for [tag] in tags]

    states = review.response("Reject")
    assert (states["publish"], states["mark_rejected"]) == ("skipped", "success")
    assert published() == [False, False]
    assert marks() == ["rejected", "rejected"]

    review.ask_again()
    review.response("Approve", ["1"])
    assert published() == [False, True]
    assert marks() == ["rejected", "approved"]

    review.ask_again()
    review.response("Approve", ["2"])
    assert published() == [True, False]
    assert marks() == ["approved", "rejected"]

    review.ask_again()
    states = review.response("Approve", ["1", "2"])
    assert states["publish"] == "skipped"
    assert published() == [False, False]
    assert len(simulator.ledger.billed) == 2
