# SPDX-License-Identifier: Apache-2.0
"""The XComs that tasks push beside their result, for lists of images and costs; they never endanger the result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image import GenerateImageOperator
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.records import COST, IMAGES
from airflow_provider_getimg.s3.object_options import dag_digest, task_digest
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

MODEL = "sketch-mini"
PRICE = 0.0025
REFERENCE = "https://a.test/x.png?sig=secret-of-the-reference"


@pytest.fixture
def saving(monkeypatch, getimg_default, seaweedfs):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
    return seaweedfs.client()


def image(**fields: Any) -> GenerateImageOperator:
    return GenerateImageOperator(
        task_id="generate", **({"model": MODEL, "prompt": "A red fox", "rate_limit_wait": 0} | fields)
    )


def transfer(generation: Any, bucket: str, **fields: Any) -> TransferToS3Operator:
    given = {"s3_key": f"s3://{bucket}/{{generation_id}}-{{index}}.{{extension}}"}
    return TransferToS3Operator(task_id="save", generation=generation, **(given | fields))


def batch(requests: Any, bucket: str, **fields: Any) -> GenerateImagesToS3Operator:
    return GenerateImagesToS3Operator(
        task_id="batch", requests=requests, s3_key=f"s3://{bucket}/{{row}}.{{extension}}", **fields
    )


class TestOneImage:
    def test_cost_of_an_image_is_recorded(self, getimg_default, context):
        image().execute(context())
        assert context.xcoms[COST] == {"cost": PRICE, "images": 1, "models": {MODEL: PRICE}}
        assert IMAGES not in context.xcoms

    def test_retry_that_pays_nothing_records_the_cost_again(self, getimg_default, context):
        # Airflow deletes the XComs of the first try.
        image(do_xcom_push=False).execute(context())
        image().execute(context(try_number=2))
        assert context.xcoms[COST]["cost"] == PRICE
        assert len(getimg_default.ledger) == 1

    @pytest.mark.parametrize("field", ["prompt", "labels"])
    def test_signatures_are_removed_from_the_recorded_request(self, getimg_default, context, field):
        value = f"As in {REFERENCE}" if field == "prompt" else {"sku": REFERENCE}
        response = image(model="seedream-5-lite", images=[REFERENCE], **{field: value}).execute(context())
        assert "images" not in response["request"]
        assert "a.test/x.png" in json.dumps(response["request"])
        assert "secret-of-the-reference" not in json.dumps(response["request"])

    def test_cost_that_cannot_be_pushed_is_logged_and_does_not_fail_the_task(
        self, getimg_default, context, capsys
    ):
        made = refusing(context(), COST)
        response = image().execute(made)
        assert context.xcoms == {"return_value": response}
        assert "The XCom 'getimg_cost' could not be pushed: RuntimeError." in capsys.readouterr().out

    def test_nothing_is_recorded_without_xcom_push(self, getimg_default, context):
        image(do_xcom_push=False).execute(context())
        assert context.xcoms == {}


def refusing(context: Any, refused: str) -> Any:
    """Return the context with an ``xcom_push`` that fails for one key."""
    push = context["ti"].xcom_push

    def refuse(key: str, value: Any) -> None:
        if key == refused:
            raise RuntimeError("the API server is away")
        push(key=key, value=value)

    context["ti"].xcom_push = refuse
    return context


class TestTransfer:
    def test_row_holds_the_request_key_and_cost_of_the_image(self, saving, bucket, context):
        response = image(labels={"sku": "A-17"}, output_format="jpeg").execute(context())
        [row] = transfer(response, bucket, s3_key=f"s3://{bucket}/{{sku}}.{{extension}}").execute(context())
        assert row["request"] == {
            "model": MODEL,
            "prompt": "A red fox",
            "output_format": "jpeg",
            "labels": {"sku": "A-17"},
        }
        assert row["key"] == "A-17.jpg"
        assert row["cost"] == PRICE
        assert row["aws_conn_id"] == "aws_default"
        assert context.xcoms[IMAGES] == 1

    def test_cost_of_a_generation_with_two_files_is_counted_once(self, saving, bucket, context):
        response = image().execute(context())
        response["data"] *= 2
        rows = transfer(response, bucket).execute(context())
        assert [row["cost"] for row in rows] == [PRICE, 0]
        assert context.xcoms[IMAGES] == 2

    @pytest.mark.parametrize("request_", [None, "A red fox", {}, {"prompt": 7, "labels": [1]}], ids=str)
    def test_invalid_request_is_omitted_from_the_row(self, saving, bucket, context, request_):
        response = image().execute(context()) | {"request": request_}
        [row] = transfer(response, bucket).execute(context())
        assert "request" not in row

    def test_file_that_was_already_saved_has_the_same_row(self, saving, bucket, context):
        response = image().execute(context())
        assert transfer(response, bucket).execute(context()) == transfer(response, bucket).execute(context(2))

    @pytest.mark.parametrize("fields", [{"do_xcom_push": False}, {"generation": []}], ids=["off", "empty"])
    def test_nothing_is_recorded_without_xcom_push_or_without_images(self, saving, bucket, context, fields):
        response = image(do_xcom_push=False).execute(context())
        transfer(**({"generation": response, "bucket": bucket} | fields)).execute(context())
        assert context.xcoms == {}


@pytest.mark.parametrize("kind", ["transfer", "batch"])
def test_object_metadata_holds_the_digest_of_the_dag_id(saving, bucket, context, kind):
    with DAG("a_dag", schedule=None):
        if kind == "transfer":
            task = transfer(image().execute(context()), bucket)
        else:
            task = batch([{"prompt": "A fox", "model": MODEL}], bucket)
    task.execute(context())
    keys = [entry["Key"] for entry in saving.list_objects_v2(Bucket=bucket)["Contents"]]
    [key] = [key for key in keys if key.endswith(".jpg")]
    assert saving.head_object(Bucket=bucket, Key=key)["Metadata"]["getimg-dag"] == dag_digest("a_dag")


class TestBatch:
    def test_images_and_cost_are_recorded(self, saving, bucket, context):
        rows = [{"prompt": "A fox", "model": MODEL}, {"prompt": "A fox", "model": "seedream-5-lite"}]
        summary = batch(rows, bucket).execute(context())
        assert summary["aws_conn_id"] == "aws_default"
        assert context.xcoms[IMAGES] == 2
        assert context.xcoms[COST] == {
            "cost": PRICE + 0.04,
            "images": 2,
            "models": {MODEL: PRICE, "seedream-5-lite": 0.04},
        }

    def test_partly_failed_batch_records_the_saved_images_and_their_cost(
        self, saving, bucket, context, simulator
    ):
        simulator.faults.add({"on": "image", "kind": "status", "status": 400})
        rows = [{"prompt": f"Fox {number}", "model": MODEL} for number in range(3)]
        with pytest.raises(errors.BatchIncompleteError):
            batch(rows, bucket, concurrency=1).execute(context())
        assert context.xcoms["return_value"]["aws_conn_id"] == "aws_default"
        assert context.xcoms[IMAGES] == 2
        assert context.xcoms[COST]["models"] == {MODEL: 2 * PRICE}

    def test_retry_counts_the_cost_of_earlier_tries_exactly_once(self, saving, bucket, context):
        batch([{"prompt": "A fox", "model": MODEL}], bucket, do_xcom_push=False).execute(context())
        assert context.xcoms == {}
        batch([{"prompt": "A fox", "model": MODEL}], bucket).execute(context(try_number=2))
        assert context.xcoms[COST]["cost"] == PRICE

    def test_images_that_already_exist_are_recorded_without_a_cost(self, saving, bucket, context):
        rows = [{"prompt": "A fox", "model": MODEL}]
        batch(rows, bucket, do_xcom_push=False).execute(context())
        batch(rows, bucket).execute(context(max_tries=4))
        assert context.xcoms == {IMAGES: 1}

    def test_manifest_metadata_holds_the_digest_of_the_task_instance(self, saving, bucket, context):
        summary = batch([{"prompt": "A fox", "model": MODEL}], bucket).execute(context())
        key = summary["manifest"].removeprefix(f"s3://{bucket}/")
        mark = task_digest("a_dag", "manual__2026-01-01T00:00:00+00:00", "a_task", -1)
        assert saving.head_object(Bucket=bucket, Key=key)["Metadata"] == {"getimg-manifest": mark}
