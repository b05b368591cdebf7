# SPDX-License-Identifier: Apache-2.0
"""The copiers: this provider's operator, rclone, and the loop inside ``HttpToS3Operator``.

Each runs in its own process, and is measured from its first request to its last object.
"""

from __future__ import annotations

import csv
import statistics
import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.process import LIMIT_SECONDS, Usage, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.testbed import SourceFile, Testbed

OURS, RCLONE, LOOP = "TransferToS3Operator", "rclone copyurl", "HttpToS3Operator's loop"
COPIERS = (OURS, RCLONE, LOOP)
RCLONE_FLAGS = (
    # The bucket exists, and a 200 for the PUT is enough: no more requests to S3 than the operator sends.
    "--s3-no-check-bucket",
    "--s3-no-head",
    # A failure must surface, not be retried.
    "--retries=1",
    # As with Amazon S3: over HTTP/2, which SeaweedFS offers, it takes almost twice the CPU time.
    "--disable-http2",
)


def copy(
    copier: str,
    testbed: Testbed,
    files: Sequence[SourceFile],
    concurrency: int,
    latency: float = 0.0,
    if_exists: str = "replace",
) -> Usage:
    """Let a copier save the files, verify them, and return its usage.

    :param latency: Seconds before the response to each download.
    :param if_exists: The operator's parameter.
    :raises devstack.StackError: It failed, or did not copy exactly these files.
    """
    with testbed.bucket() as bucket:
        testbed.simulator.settings(download_latency=latency)
        try:
            if copier == RCLONE:
                usage = _by_rclone(testbed, files, bucket, concurrency)
            else:
                usage = testbed.run_worker(
                    "benchmarks.worker",
                    by="provider" if copier == OURS else "http_to_s3",
                    generations=[file.generation for file in files],
                    bucket=bucket,
                    concurrency=concurrency,
                    if_exists=if_exists,
                )
        finally:
            testbed.simulator.settings(download_latency=0.0)
        testbed.verify(bucket, files)
    return usage


def _by_rclone(testbed: Testbed, files: Sequence[SourceFile], bucket: str, concurrency: int) -> Usage:
    idle = rclone_start(testbed)
    whole = _rclone(testbed, files, bucket, concurrency)
    return replace(
        whole,
        seconds=whole.seconds - idle.seconds,
        cpu_seconds=whole.cpu_seconds - idle.cpu_seconds,
        idle_bytes=idle.peak_bytes,
    )


@cache
def rclone_start(testbed: Testbed) -> Usage:
    """Return what rclone uses to copy nothing: its startup, which is not counted, just like the others' imports."""
    with testbed.bucket() as bucket:
        starts = [_rclone(testbed, [], bucket, 1) for _ in range(5)]
    return Usage(
        seconds=statistics.median(start.seconds for start in starts),
        cpu_seconds=statistics.median(start.cpu_seconds for start in starts),
        idle_bytes=0,
        peak_bytes=max(start.peak_bytes for start in starts),
    )


def _rclone(testbed: Testbed, files: Sequence[SourceFile], bucket: str, concurrency: int) -> Usage:
    urls = testbed.folder / "urls.csv"
    with urls.open("w", newline="") as table:
        csv.writer(table).writerows([file.url, file.key] for file in files)
    settings = {
        "type": "s3",
        "provider": "SeaweedFS",
        "access_key_id": testbed.s3.access_key,
        "secret_access_key": testbed.s3.secret_key,
        "endpoint": testbed.s3_endpoint_url,
        "region": "us-east-1",
        "force_path_style": "true",
    }
    remote = {f"RCLONE_CONFIG_BENCH_{name.upper()}": value for name, value in settings.items()}
    own = {
        name: value
        for name, value in testbed.environment().items()
        if not name.startswith("RCLONE_") or name == "RCLONE_CA_CERT"
    }
    program = Path(sysconfig.get_path("scripts")) / "rclone"
    return run(
        [program, "copyurl", "--urls", urls, f"bench:{bucket}", f"--transfers={concurrency}", *RCLONE_FLAGS],
        # Ignore the user's own configuration.
        env=own | remote | {"RCLONE_CONFIG": "/dev/null"},
        log=testbed.folder / "rclone.log",
        limit=LIMIT_SECONDS,
    )
