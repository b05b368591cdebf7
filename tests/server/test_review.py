# SPDX-License-Identifier: Apache-2.0
"""Images to review, read from Airflow's real XComs of mapped tasks and of a batch."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.review import images_markdown, saved_images
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

PROMPTS = ["a fox", "an owl"]


@task
def look(task_id: str, ti: Any = None) -> dict[str, Any]:
    images = saved_images(ti, task_id)
    return {
        "prompts": [image.prompt for image in images],
        "places": [image.page.split(f"/{task_id}/")[1] for image in images],
        "keys": [image.key for image in images],
        "markdown": images_markdown(ti, task_id),
    }


@pytest.fixture
def seen(run_dag, getimg_conn, seaweedfs, bucket):
    with DAG("to_review", schedule=None) as dag:

        @task
        def responses(generations: Any) -> list[Any]:
            # A skipped generation in the middle, whose transfer is skipped, too.
            first, last = generations
            return [first, [None], last]

        generate = GenerateImageOperator.partial(task_id="generate", model="seedream-5-lite").expand(
            prompt=PROMPTS
        )
        mapped = TransferToS3Operator.partial(
            task_id="mapped", s3_bucket=bucket, s3_key="mapped/{generation_id}"
        ).expand(generation=responses(generate.output))
        batch = GenerateImagesToS3Operator(
            task_id="batch",
            requests=[{"model": "seedream-5-lite", "prompt": prompt} for prompt in PROMPTS],
            s3_bucket=bucket,
            s3_key="batch/{row}",
            max_cost="1",
        )
        for saved in (mapped, batch):
            saved >> look.override(task_id=f"look_at_{saved.task_id}", trigger_rule="all_done")(saved.task_id)
    return run_dag(dag, connections={"aws_default": seaweedfs.aws_connection()}).xcoms


def test_images_of_mapped_tasks_and_of_a_batch_are_found_and_numbered(seen):
    mapped, batch = seen["look_at_mapped"], seen["look_at_batch"]
    assert mapped["prompts"] == batch["prompts"] == PROMPTS
    assert mapped["places"] == ["0/0", "2/0"]
    assert batch["places"] == ["-1/0", "-1/1"]
    assert batch["keys"] == ["batch/0", "batch/1"]
    for look_at in (mapped, batch):
        assert [look_at["markdown"].count(f"**{number}.**") for number in (1, 2, 3)] == [1, 1, 0]
