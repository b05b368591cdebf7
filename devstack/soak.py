# SPDX-License-Identifier: Apache-2.0
"""Many images through the cluster: what each costs, and whether any component grows.

``python -m devstack.soak [--images N] [--dag DAG] [--conf JSON] [--runs N] [--latency S] [--file-size BYTES]``.
Prints the memory of each component before, at most and after each run, and fails unless every image
was billed once and lies in the bucket.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from devstack.cluster import Cluster, Memory
from devstack.cluster.memory import memory_table
from devstack.process import StackError
from devstack.rest import FINAL_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SAMPLE_SECONDS = 5.0
RUN_SECONDS = 3 * 3600.0
# The first run of a worker's process imports what all later ones use: that is no growth.
WARM_UP_IMAGES = 32


@dataclass(frozen=True)
class Soak:
    """A run of many images that has ended.

    :param seconds: From the trigger to the end of the run.
    :param twice: The prompts that were billed more than once.
    :param stored: Images that the run left in the bucket.
    :param peak: The most that each component held, of samples five seconds apart.
    """

    images: int
    seconds: float
    billed: int
    twice: tuple[str, ...]
    stored: int
    start: Mapping[str, Memory]
    peak: Mapping[str, Memory]
    end: Mapping[str, Memory]

    @property
    def complete(self) -> bool:
        """Whether each image was paid once and saved."""
        return not self.twice and self.billed == self.images == self.stored


def mapped_prompts(images: int) -> dict[str, Any]:
    """Return the conf of ``getimg_mapped_prompts``: a task for each image, and one that saves all."""
    return {"subjects": [f"subject {number}" for number in range(images)]}


def nightly_batch(images: int) -> dict[str, Any]:
    """Return the conf of ``getimg_nightly_batch``: tasks of a hundred images each.

    They are of the simulator's cheap model: its account holds 100 USD.
    """
    return {"articles": images, "rows_per_task": min(images, 100), "model": "sketch-mini"}


#: The conf that makes a DAG ask for so many images, each with a prompt of its own.
LOADS: dict[str, Callable[[int], dict[str, Any]]] = {
    "getimg_mapped_prompts": mapped_prompts,
    "getimg_nightly_batch": nightly_batch,
}


def soak(cluster: Cluster, dag_id: str, images: int, conf: dict[str, Any]) -> Soak:
    """Run a DAG that asks for that many images, and measure the cluster meanwhile.

    :param conf: The run's conf, which makes it ask for ``images`` images.
    :raises devstack.StackError: The run failed.
    """
    rest = cluster.rest
    rest.wait_for_dag(dag_id)
    rest.unpause(dag_id)
    cluster.simulator.clear_ledger()
    stored = count_images(cluster)
    start = cluster.memory()
    peak = dict(start)
    started = time.monotonic()
    run_id = rest.trigger(dag_id, conf=conf)
    while (state := _state(cluster, dag_id, run_id)) not in FINAL_STATES:
        if time.monotonic() > started + RUN_SECONDS:
            raise StackError(f"{dag_id} did not end in {RUN_SECONDS:g} s.")
        for name, held in cluster.memory().items():
            peak[name] = max(peak[name], held, key=lambda memory: memory.pss)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - started
    if state != "success":
        raise StackError(f"The run of {dag_id} failed.", rest.failed_log(dag_id, run_id))
    bills = Counter(post["prompt"] for post in cluster.simulator.ledger()["posts"] if post["billed"])
    return Soak(
        images=images,
        seconds=seconds,
        billed=bills.total(),
        twice=tuple(prompt for prompt, times in bills.items() if times > 1),
        stored=count_images(cluster) - stored,
        start=start,
        peak=peak,
        end=cluster.memory(),
    )


def count_images(cluster: Cluster) -> int:
    """Count the objects in the cluster's bucket that are no manifests."""
    pages = cluster.s3.client().get_paginator("list_objects_v2").paginate(Bucket=cluster.bucket)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return sum(not key.endswith(".jsonl") for key in keys)


def empty(cluster: Cluster) -> None:
    """Delete all objects in the cluster's bucket."""
    client = cluster.s3.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=cluster.bucket):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=cluster.bucket, Key=entry["Key"])


def report(result: Soak, console: Console) -> None:
    """Print what the run came to."""
    console.print(memory_table(("start", result.start), ("peak", result.peak), ("end", result.end)))
    console.print(
        f"{result.images} images in {result.seconds:.0f} s ({result.images / result.seconds:.2f} a second): "
        f"{result.billed} billed, {len(result.twice)} of them twice, {result.stored} saved.",
        soft_wrap=True,
        highlight=False,
    )


def _state(cluster: Cluster, dag_id: str, run_id: str) -> str:
    run: dict[str, Any] = cluster.rest.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
    return str(run["state"])


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(description="Put many images through the cluster.")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--dag", default="getimg_mapped_prompts", help="default: getimg_mapped_prompts")
    parser.add_argument("--conf", type=json.loads, help="the run's conf, for a DAG that is not known here")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds that an image takes (default: 1)")
    parser.add_argument("--file-size", type=int, default=2**20, help="bytes of each file (default: 1 MiB)")
    parser.add_argument("--concurrency", type=int, default=8, help="slots of the pool getimg (default: 8)")
    parser.add_argument("--runs", type=int, default=1, help="how often, one after the other (default: 1)")
    arguments = parser.parse_args()
    if arguments.conf is None and arguments.dag not in LOADS:
        parser.error(f"--dag {arguments.dag} needs --conf; without it: {', '.join(LOADS)}")
    load = LOADS.get(arguments.dag)
    console = Console()
    options = {"latency": arguments.latency, "file_size": arguments.file_size}
    try:
        with Cluster(concurrency=arguments.concurrency, simulator=options) as cluster:
            if load is not None:
                soak(cluster, arguments.dag, WARM_UP_IMAGES, load(WARM_UP_IMAGES))
            conf = arguments.conf if load is None or arguments.conf else load(arguments.images)
            complete = True
            for _ in range(arguments.runs):
                # What lies there already would not be asked for.
                empty(cluster)
                result = soak(cluster, arguments.dag, arguments.images, conf)
                report(result, console)
                complete = complete and result.complete
    except StackError as error:
        console.print(f"\n{error}", soft_wrap=True, markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
