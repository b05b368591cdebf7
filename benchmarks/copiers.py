# SPDX-License-Identifier: Apache-2.0
"""Who copies: this provider's operator, rclone, and the loop inside ``HttpToS3Operator``.

Each runs in a process of its own, and is measured from its first request to its last object.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.process import Usage, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.stage import SourceFile, Stage

OURS, RCLONE, LOOP = "TransferToS3Operator", "rclone copyurl", "HttpToS3Operator's loop"
COPIERS = (OURS, RCLONE, LOOP)
LIMIT_SECONDS = 600.0
RCLONE_FLAGS = (
    # The bucket is there, and an answer 200 to a PUT is enough: what the operator asks S3, and no more.
    "--s3-no-check-bucket",
    "--s3-no-head",
    # A failure is to be seen, not to be mended.
    "--retries=1",
)


def copy(
    copier: str, stage: Stage, files: Sequence[SourceFile], concurrency: int, latency: float = 0.0
) -> Usage:
    """Let a copier save the files, prove that it did, and return what that took.

    :param latency: Seconds before each download answers.
    :raises devstack.StackError: It failed, or did not copy what it should.
    """
    with stage.bucket() as bucket:
        stage.simulator.settings(download_latency=latency)
        try:
            work = _by_rclone if copier == RCLONE else _by_worker
            usage = work(copier, stage, files, bucket, concurrency)
        finally:
            stage.simulator.settings(download_latency=0.0)
        stage.verify(bucket, files)
    return usage


def _by_worker(
    copier: str, stage: Stage, files: Sequence[SourceFile], bucket: str, concurrency: int
) -> Usage:
    job, result = stage.folder / "job.json", stage.folder / "result.json"
    result.unlink(missing_ok=True)
    job.write_text(
        json.dumps(
            {
                "copier": "provider" if copier == OURS else "http_to_s3",
                "generations": [file.generation for file in files],
                "bucket": bucket,
                "concurrency": concurrency,
                "result": str(result),
            }
        )
    )
    run(
        [sys.executable, "-m", "benchmarks.worker", job],
        env=stage.environment(),
        log=stage.folder / "worker.log",
        limit=LIMIT_SECONDS,
    )
    return Usage(**json.loads(result.read_text()))


def _by_rclone(
    _copier: str, stage: Stage, files: Sequence[SourceFile], bucket: str, concurrency: int
) -> Usage:
    idle = rclone_start(stage)
    whole = _rclone(stage, files, bucket, concurrency)
    return replace(
        whole,
        seconds=whole.seconds - idle.seconds,
        cpu_seconds=whole.cpu_seconds - idle.cpu_seconds,
        idle_bytes=idle.peak_bytes,
    )


@cache
def rclone_start(stage: Stage) -> Usage:
    """Return what rclone takes to copy nothing: its start, which isn't counted, as the others' imports aren't."""
    with stage.bucket() as bucket:
        starts = [_rclone(stage, [], bucket, 1) for _ in range(5)]
    return Usage(
        seconds=statistics.median(start.seconds for start in starts),
        cpu_seconds=statistics.median(start.cpu_seconds for start in starts),
        idle_bytes=0,
        peak_bytes=max(start.peak_bytes for start in starts),
    )


def _rclone(stage: Stage, files: Sequence[SourceFile], bucket: str, concurrency: int) -> Usage:
    urls = stage.folder / "urls.csv"
    with urls.open("w", newline="") as table:
        csv.writer(table).writerows([file.url, file.key] for file in files)
    settings = {
        "type": "s3",
        "provider": "SeaweedFS",
        "access_key_id": stage.s3.access_key,
        "secret_access_key": stage.s3.secret_key,
        "endpoint": stage.s3.endpoint_url,
        "region": "us-east-1",
        "force_path_style": "true",
    }
    remote = {f"RCLONE_CONFIG_BENCH_{name.upper()}": value for name, value in settings.items()}
    own = {name: value for name, value in stage.environment().items() if not name.startswith("RCLONE_")}
    program = Path(sysconfig.get_path("scripts")) / "rclone"
    return run(
        [program, "copyurl", "--urls", urls, f"bench:{bucket}", f"--transfers={concurrency}", *RCLONE_FLAGS],
        # A user's own configuration is not read.
        env=own | remote | {"RCLONE_CONFIG": "/dev/null"},
        log=stage.folder / "rclone.log",
        limit=LIMIT_SECONDS,
    )
