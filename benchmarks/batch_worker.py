# SPDX-License-Identifier: Apache-2.0
"""The process that makes a batch and measures itself: ``python -m benchmarks.batch_worker JOB``.

The clock starts when everything is imported, and includes creating clients and threads.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.process import do_job, import_provider
from benchmarks.workload import PREFIX, SHARED, requests

if TYPE_CHECKING:
    from collections.abc import Callable

AWS_CONNECTION = "aws_default"
TIMEOUT_SECONDS = 60


class SlowStore:
    """A task state store that keeps nothing and is as slow as Airflow's, one call at a time.

    :param set_seconds: Duration of a write.
    :param get_seconds: Duration of a read.
    """

    def __init__(self, set_seconds: float, get_seconds: float) -> None:
        self._set_seconds = set_seconds
        self._get_seconds = get_seconds
        self._channel = threading.Lock()

    def get(self, _key: str, default: Any = None) -> Any:
        """Return the default."""
        with self._channel:
            time.sleep(self._get_seconds)
        return default

    def set(self, _key: str, value: Any, **_: Any) -> None:
        """Serialize the value and discard it."""
        with self._channel:
            # Airflow sends it over a socket as JSON.
            json.dumps(value)
            time.sleep(self._set_seconds)

    def delete(self, _key: str) -> None:
        """Delete nothing."""
        with self._channel:
            time.sleep(self._set_seconds)


def by_operator(job: dict[str, Any]) -> Callable[[], object]:
    """Return the work of ``GenerateImagesToS3Operator``."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.sdk.execution_time.context import OutletEventAccessors

    from airflow_provider_getimg.operators.image_batch import GenerateImagesToS3Operator

    import_provider()
    # For the imports that creating a client triggers.
    S3Hook(AWS_CONNECTION).get_conn()
    operator = GenerateImagesToS3Operator(
        task_id="benchmark",
        requests=requests(job["images"]),
        defaults=SHARED,
        s3_bucket=job["bucket"],
        s3_key=PREFIX + "{row:05}.{extension}",
        manifest_key="manifest.jsonl",
        concurrency=job["concurrency"],
        aws_conn_id=AWS_CONNECTION,
    )
    task = {"dag_id": "benchmark", "run_id": "benchmark", "task_id": "benchmark", "map_index": -1}
    context: Any = {
        "ti": SimpleNamespace(try_number=1, max_tries=3, **task),
        "task_state_store": SlowStore(job["set_seconds"], job["get_seconds"]),
        "outlet_events": OutletEventAccessors(),
    }
    return lambda: operator.execute(context)


def by_threads(job: dict[str, Any]) -> Callable[[], object]:
    """Return the work of a plain thread pool, whose threads only send requests, download and save."""
    import httpx
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_getimg.s3.connection import s3_hook

    S3Hook(AWS_CONNECTION).get_conn()
    headers = {"Authorization": f"Bearer {job['api_key']}"}

    def make_all() -> None:
        s3: Any = s3_hook(AWS_CONNECTION, job["concurrency"]).get_conn()
        with (
            httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS) as http,
            ThreadPoolExecutor(job["concurrency"]) as pool,
        ):

            def make(number: int, request: dict[str, Any]) -> None:
                response = http.post(
                    f"{job['url']}/v2/images/generations", headers=headers, json=SHARED | request
                )
                file = http.get(response.raise_for_status().json()["data"][0]["url"]).raise_for_status()
                s3.put_object(Bucket=job["bucket"], Key=f"{PREFIX}{number:05}.jpg", Body=file.content)

            for made in [pool.submit(make, *each) for each in enumerate(requests(job["images"]))]:
                made.result()

    return make_all


if __name__ == "__main__":
    do_job({"operator": by_operator, "threads": by_threads})
