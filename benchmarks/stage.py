# SPDX-License-Identifier: Apache-2.0
"""Both servers of a benchmark, the files to copy, and the proof that they were copied."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from devstack import SeaweedFS, Simulator, StackError
from devstack.network import clean_environment
from devstack.s3_requests import open_uploads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The cheapest of the catalogue, and the format whose pictures are smallest: the rest of a file is padding.
REQUEST = {"model": "sketch-mini", "prompt": "a benchmark", "output_format": "jpeg"}
WRITERS = 8


@dataclass(frozen=True)
class SourceFile:
    """One file at the simulator.

    :param generation: The API's answer that names it.
    """

    generation: dict[str, Any]
    size: int
    sha256: str

    @property
    def url(self) -> str:
        """Where it is downloaded."""
        return str(self.generation["data"][0]["url"])

    @property
    def key(self) -> str:
        """The key that all copiers give its object."""
        return f"{self.generation['id']}.jpg"


class Stage:
    """A SeaweedFS, a simulator and a temporary folder. Use it as a context manager."""

    def __init__(self) -> None:
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self.folder = Path(tempfile.mkdtemp(prefix="getimg-benchmark-"))
            ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.s3 = ends.enter_context(SeaweedFS())
            self.simulator = ends.enter_context(Simulator(balance="10000.00"))
            self.client = self.s3.client(max_pool_connections=WRITERS)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that works with Airflow's hooks."""
        return clean_environment() | {
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_AWS_DEFAULT": self.s3.aws_connection(),
            "AIRFLOW_CONN_GETIMG_DEFAULT": self.simulator.connection(),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_files(self, count: int, size: int) -> list[SourceFile]:
        """Generate files, and read each once, so that none is drawn while the clock runs."""
        self.simulator.settings(file_size=size, download_latency=0.0)
        headers = {"Authorization": f"Bearer {self.simulator.api_key}"}
        files = []
        with httpx.Client(trust_env=False, timeout=60) as http:
            for _ in range(count):
                answer = http.post(
                    f"{self.simulator.url}/v2/images/generations", headers=headers, json=REQUEST
                )
                generation = answer.raise_for_status().json()
                digest, length = hashlib.sha256(), 0
                with http.stream("GET", generation["data"][0]["url"]) as download:
                    for chunk in download.raise_for_status().iter_raw():
                        digest.update(chunk)
                        length += len(chunk)
                if length != size:
                    raise StackError(f"The simulator made a file of {length} bytes instead of {size}.")
                files.append(SourceFile(generation, length, digest.hexdigest()))
        return files

    @contextlib.contextmanager
    def bucket(self) -> Iterator[str]:
        """Lend an empty bucket, which is deleted with all that is in it."""
        name = self.s3.create_bucket(f"bench-{uuid.uuid4().hex[:12]}")
        try:
            self._make_volumes(name)
            yield name
        finally:
            # With the bucket SeaweedFS deletes its volumes: single objects would still take up the disk.
            for key in self._keys(name):
                self.client.delete_object(Bucket=name, Key=key)
            self.client.delete_bucket(Bucket=name)

    def verify(self, bucket: str, files: Sequence[SourceFile]) -> None:
        """Check that the bucket holds these files, byte for byte, and nothing else.

        :raises devstack.StackError: It does not.
        """
        keys, expected = self._keys(bucket), {file.key for file in files}
        if set(keys) != expected:
            raise StackError(f"The bucket holds {len(keys)} objects instead of {len(expected)} as expected.")
        for file in files:
            digest = hashlib.sha256()
            for chunk in self.client.get_object(Bucket=bucket, Key=file.key)["Body"].iter_chunks(2**20):
                digest.update(chunk)
            if digest.hexdigest() != file.sha256:
                raise StackError(f"The object {file.key} holds other bytes than its file.")
        if open_uploads(self.client, bucket):
            raise StackError("A multipart upload was left open.")

    def _make_volumes(self, bucket: str) -> None:
        """Have SeaweedFS make the bucket's volumes: the first objects wait up to a second for that."""

        def write(number: int) -> None:
            self.client.put_object(Bucket=bucket, Key=f"first-{number}", Body=b"0" * 2**20)
            self.client.delete_object(Bucket=bucket, Key=f"first-{number}")

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(2 * WRITERS)))

    def _keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]
