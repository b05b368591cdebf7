# SPDX-License-Identifier: Apache-2.0
"""Runs the operators that save to S3 in this process, each test with its own folder."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import httpx

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator
from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

    from airflow_provider_getimg.testing import GetimgSimulator

MODEL = "seedream-5-lite"


class Saving:
    """
    Runs the operators, which save to a new folder of a bucket.

    :param client: Reads the saved objects from the server itself, bypassing any proxy.
    """

    def __init__(
        self, simulator: GetimgSimulator, client: S3Client, bucket: str, context: Callable[..., Any]
    ) -> None:
        self.client = client
        self.bucket = bucket
        self.folder = f"{uuid.uuid4().hex[:8]}/"
        self._simulator = simulator
        self._context = context

    def generate(self, **fields: Any) -> dict[str, Any]:
        """Pay for an image, and return the API's response."""
        with GetimgClient(self._simulator.api_key, base_url=self._simulator.url) as client:
            request = ImageRequest.checked(model=MODEL, prompt="A red fox", **fields)
            return client.generate_image(request).to_json()

    def transfer(
        self, generation: Any, key: str = "{index}.{extension}", *, try_number: int = 1, **fields: Any
    ) -> list[dict[str, Any]]:
        operator = TransferToS3Operator(
            task_id="save", generation=generation, s3_bucket=self.bucket, s3_key=self.folder + key, **fields
        )
        return operator.execute(self._context(try_number=try_number))

    def batch(self, count: int, *, try_number: int = 1, **fields: Any) -> dict[str, Any]:
        operator = GenerateImagesToS3Operator(
            task_id="generate",
            requests=[{"prompt": f"Picture {number}"} for number in range(count)],
            defaults={"model": MODEL},
            s3_bucket=self.bucket,
            s3_key=self.folder + "{row:04}.{extension}",
            **fields,
        )
        return operator.execute(self._context(try_number=try_number))

    def put(self, key: str, content: bytes) -> None:
        """Write an object of unknown origin."""
        self.client.put_object(Bucket=self.bucket, Key=self.folder + key, Body=content)

    def content(self, key: str) -> bytes:
        """Return the content of the object at a key below the folder."""
        return self.client.get_object(Bucket=self.bucket, Key=self.folder + key)["Body"].read()

    def keys(self) -> list[str]:
        """Return the keys below the folder, except those of manifests."""
        listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.folder).get("Contents", [])
        keys = sorted(entry["Key"].removeprefix(self.folder) for entry in listed)
        return [key for key in keys if not key.startswith("manifests/")]

    def manifest(self, summary: dict[str, Any]) -> list[dict[str, Any]]:
        key = summary["manifest"].removeprefix(f"s3://{self.bucket}/{self.folder}")
        return [json.loads(line) for line in self.content(key).splitlines()]


def bytes_of(response: dict[str, Any]) -> bytes:
    """Return the content of a response's first file, from the simulator."""
    return httpx.get(response["data"][0]["url"], trust_env=False).raise_for_status().content
