# SPDX-License-Identifier: Apache-2.0
"""The process that copies with Airflow's hooks and measures itself: ``python -m benchmarks.worker JOB``.

The clock starts after the imports and the creation of the S3 client: any Airflow task needs these, and their
cost does not depend on how much is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.process import do_job, import_provider

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "{generation_id}.{extension}"
TIMEOUT_SECONDS = 60


def by_provider(job: dict[str, Any]) -> Callable[[], object]:
    """Return the work of ``TransferToS3Operator``."""
    from airflow_provider_getimg.transfers.getimg_to_s3 import TransferToS3Operator

    import_provider()
    operator = TransferToS3Operator(
        task_id="benchmark",
        generation=job["generations"],
        s3_bucket=job["bucket"],
        s3_key=KEY,
        concurrency=job["concurrency"],
        if_exists=job["if_exists"],
    )
    operator.s3_hook.get_conn()
    return lambda: operator.execute({})


def by_http_to_s3(job: dict[str, Any]) -> Callable[[], object]:
    """Return the work of ``HttpToS3Operator``, which copies one file, in a loop over all of them."""
    import requests
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook()
    hook.get_conn()

    def copy() -> None:
        for generation in job["generations"]:
            key = KEY.format(generation_id=generation["id"], extension="jpg")
            # Not one session for all: HttpHook creates one for each request.
            response = requests.get(generation["data"][0]["url"], timeout=TIMEOUT_SECONDS)
            response.raise_for_status()
            hook.load_bytes(response.content, key, job["bucket"], replace=True)

    return copy


if __name__ == "__main__":
    do_job({"provider": by_provider, "http_to_s3": by_http_to_s3})
