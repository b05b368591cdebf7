# SPDX-License-Identifier: Apache-2.0
"""Runs batches in one process, with a real S3 server and the simulator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from tests.support.s3_faults import open_uploads

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

MODEL = "sketch-mini"
PRICE = 0.0025
MANIFEST = "night/manifests/a_dag/manual__2026-01-01T00_00_00_00_00/a_task.jsonl"


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"A red fox, number {number}", **fields} for number in range(count)]


class Bench:
    """Runs batches that save to one empty bucket."""

    def __init__(self, simulator: GetimgSimulator, seaweedfs: SeaweedFS, bucket: str, context: Any) -> None:
        self.simulator = simulator
        self.bucket = bucket
        self.client = seaweedfs.client()
        self.context = context

    def operator(self, requests: Any, **fields: Any) -> GenerateImagesToS3Operator:
        given = {
            "s3_key": f"s3://{self.bucket}/night/{{row:03}}.{{extension}}",
            "defaults": {"model": MODEL},
            "concurrency": 4,
        }
        return GenerateImagesToS3Operator(task_id="batch", requests=requests, **(given | fields))

    def run(self, requests: Any, *, try_number: int = 1, max_tries: int = 3, **fields: Any) -> dict[str, Any]:
        context = self.context(try_number=try_number, max_tries=max_tries)
        return self.operator(requests, **fields).execute(context)

    def failure(self, requests: Any, **fields: Any) -> errors.BatchIncompleteError:
        with pytest.raises(errors.BatchIncompleteError) as caught:
            self.run(requests, **fields)
        assert "sig=" not in str(caught.value)
        return caught.value

    def objects(self) -> dict[str, bytes]:
        assert open_uploads(self.client, self.bucket) == []
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {
            entry["Key"]: self.client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
            for entry in listed
        }

    def files(self) -> dict[str, bytes]:
        return {key: body for key, body in self.objects().items() if not key.endswith(".jsonl")}

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.objects()[MANIFEST].splitlines()]

    def billed(self) -> list[str]:
        return sorted(post["prompt"] for post in self.simulator.ledger.raw()["posts"] if post["billed"])

    def posts(self) -> int:
        return len(self.simulator.ledger)


def play(simulator: GetimgSimulator, *faults: dict[str, Any]) -> None:
    simulator.faults.clear()
    simulator.faults.add(*faults)
