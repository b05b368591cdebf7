# SPDX-License-Identifier: Apache-2.0
"""Generates many images with the cluster, checks that each is paid for once and saved, and measures each component's memory.

``python -m benchmarks.soak [--images N] [--runs N] [--concurrency N]`` runs the example DAG ``getimg_nightly_batch`` on
the cluster of ``docker-compose.yaml``, run as processes. It prints each component's memory before and after each run and its
peak, and fails unless every image was billed once and is in the bucket.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from airflow_provider_getimg.testing.server import SimulatorError
from devstack.cluster import Cluster
from devstack.cluster.memory import memory_table
from devstack.process import StackError
from devstack.rest import FINAL_STATES

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

DAG_ID = "getimg_nightly_batch"
IMAGES_PER_TASK = 100
FILE_BYTES = 2**20
LATENCY_SECONDS = 1.0
SAMPLE_SECONDS = 5.0
RUN_SECONDS = 3 * 3600.0
# The first run in a worker process imports what later ones use: that does not count as growth.
WARM_UP_IMAGES = 32


def soak(cluster: Cluster, images: int, console: Console) -> bool:
    """Generate this number of images, print what it took, and return whether each was paid for once and saved.

    :raises devstack.StackError: The run failed.
    """
    client, rest = cluster.s3.client(), cluster.rest
    # Images that already exist would not be requested.
    for key in _keys(client, cluster.bucket):
        client.delete_object(Bucket=cluster.bucket, Key=key)
    rest.wait_for_dag(DAG_ID)
    rest.unpause(DAG_ID)
    cluster.simulator.ledger.clear()
    start = cluster.memory()
    peak = dict(start)
    started = time.monotonic()
    # A cheap model: the simulator's account holds 100 USD.
    conf = {"articles": images, "rows_per_task": min(images, IMAGES_PER_TASK), "model": "sketch-mini"}
    run_id = rest.trigger(DAG_ID, conf=conf)
    while (state := rest.request("GET", f"/dags/{DAG_ID}/dagRuns/{run_id}")["state"]) not in FINAL_STATES:
        if time.monotonic() > started + RUN_SECONDS:
            raise StackError(f"{DAG_ID} did not end in {RUN_SECONDS:g} s.")
        for name, held in cluster.memory().items():
            peak[name] = max(peak[name], held, key=lambda memory: memory.pss)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - started
    if state != "success":
        raise StackError(f"The run of {DAG_ID} failed.", rest.failed_log(DAG_ID, run_id))
    prompts = [entry.prompt for entry in cluster.simulator.ledger.billed]
    stored = sum(not key.endswith(".jsonl") for key in _keys(client, cluster.bucket))
    console.print(memory_table(("start", start), ("peak", peak), ("end", cluster.memory())))
    console.print(
        f"{images} images in {seconds:.0f} s ({images / seconds:.2f} a second): "
        f"{len(prompts)} billed, {len(prompts) - len(set(prompts))} of them twice, {stored} saved.",
        soft_wrap=True,
        highlight=False,
    )
    return len(prompts) == len(set(prompts)) == stored == images


def _keys(client: S3Client, bucket: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Put many images through the cluster."
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1, help="how often, one after the other (default: 1)")
    parser.add_argument("--concurrency", type=int, default=8, help="slots of the pool getimg (default: 8)")
    arguments = parser.parse_args()
    console = Console()
    options = {"latency": LATENCY_SECONDS, "file_size": FILE_BYTES}
    try:
        with Cluster(concurrency=arguments.concurrency, simulator=options) as cluster:
            counts = [WARM_UP_IMAGES, *[arguments.images] * arguments.runs]
            complete = [soak(cluster, images, console) for images in counts]
    except (SimulatorError, StackError) as error:
        console.print(f"\n{error}", soft_wrap=True, markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if all(complete) else 1


if __name__ == "__main__":
    sys.exit(main())
