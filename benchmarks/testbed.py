# SPDX-License-Identifier: Apache-2.0
"""The servers of a benchmark, the files to copy, and the check that they were copied."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from airflow_provider_getimg.testing.server import SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator
from benchmarks.process import LIMIT_SECONDS, Usage, run
from devstack import SeaweedFS, StackError
from devstack.network import clean_environment
from tests.support.raw_servers import write_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.detour import Detour

# The cheapest model, and the format with the smallest files: the rest of a file is padding.
REQUEST = {"model": "sketch-mini", "prompt": "a benchmark", "output_format": "jpeg"}
WRITERS = 8


@dataclass(frozen=True)
class SourceFile:
    """A file to copy.

    :param generation: The API's response with its URL.
    """

    generation: dict[str, Any]
    size: int
    sha256: str

    @property
    def url(self) -> str:
        """Its download URL."""
        return str(self.generation["data"][0]["url"])

    @property
    def key(self) -> str:
        """Its object's key, which is the same for all copiers."""
        return f"{self.generation['id']}.jpg"


class Testbed:
    """A SeaweedFS, a simulator and a temporary folder. Use it as a context manager."""

    def __init__(self) -> None:
        self._ends = contextlib.ExitStack()
        #: The route to S3, unless it is direct.
        self.detour: Detour | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self.folder = Path(tempfile.mkdtemp(prefix="getimg-benchmark-"))
            ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.certificate = write_certificate(self.folder / "server.pem", "127.0.0.1")
            self.s3 = ends.enter_context(SeaweedFS(certificate=self.certificate))
            process = SimulatorProcess(balance="10000.00")
            self.simulator = GetimgSimulator(ends.enter_context(process))
            self.client = self.s3.client(max_pool_connections=WRITERS)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def environment(self) -> dict[str, str]:
        """Return the environment for a process that uses Airflow's hooks."""
        return (
            clean_environment()
            | {
                "AIRFLOW_HOME": str(self.folder / "airflow"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW_CONN_AWS_DEFAULT": self.s3.aws_connection(),
                "AIRFLOW_CONN_GETIMG_DEFAULT": self.simulator.process.connection(),
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            | (self.detour.environment() if self.detour is not None else {})
        )

    @property
    def s3_endpoint_url(self) -> str:
        """The URL at which copiers reach S3."""
        return self.s3.endpoint_url if self.detour is None else self.detour.s3_endpoint_url

    def content(self, file: SourceFile) -> bytes:
        """Return the bytes of a file."""
        return httpx.get(file.url, trust_env=False).raise_for_status().content

    def run_worker(self, module: str, **job: Any) -> Usage:
        """Run a job in a new process, with :func:`benchmarks.process.do_job`, and return what it measured.

        :param job: Parameters of its function; ``by`` names the function.
        :raises devstack.StackError: It failed or took too long.
        """
        path, result = self.folder / "job.json", self.folder / "result.json"
        result.unlink(missing_ok=True)
        path.write_text(json.dumps(job | {"result": str(result)}))
        run(
            [sys.executable, "-m", module, path],
            env=self.environment(),
            log=self.folder / "worker.log",
            limit=LIMIT_SECONDS,
        )
        return Usage(**json.loads(result.read_text()))

    def make_files(self, count: int, size: int) -> list[SourceFile]:
        """Generate files, and download each once, so that none is drawn while the clock runs."""
        self.simulator.settings(file_size=size, download_latency=0.0)
        headers = {"Authorization": f"Bearer {self.simulator.api_key}"}
        files = []
        with httpx.Client(trust_env=False, timeout=60) as http:
            for _ in range(count):
                response = http.post(
                    f"{self.simulator.url}/v2/images/generations", headers=headers, json=REQUEST
                )
                generation = response.raise_for_status().json()
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
        """Yield an empty bucket, and delete it with its content."""
        name = self.s3.create_bucket(f"bench-{uuid.uuid4().hex[:12]}")
        try:
            self._make_volumes(name)
            yield name
        finally:
            # Deleting the bucket frees its volumes in SeaweedFS; deleting objects alone does not free the disk.
            for key in self._keys(name):
                self.client.delete_object(Bucket=name, Key=key)
            self.client.delete_bucket(Bucket=name)

    def verify(self, bucket: str, files: Sequence[SourceFile]) -> None:
        """Check that the bucket holds these files with identical content, and nothing else.

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
        if self.client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
            raise StackError("A multipart upload was left open.")

    def _make_volumes(self, bucket: str) -> None:
        """Make SeaweedFS create the bucket's volumes now: the first objects would wait up to a second for them."""

        def write(number: int) -> None:
            self.client.put_object(Bucket=bucket, Key=f"first-{number}", Body=b"0" * 2**20)
            self.client.delete_object(Bucket=bucket, Key=f"first-{number}")

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, range(2 * WRITERS)))

    def _keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]
