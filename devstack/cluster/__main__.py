# SPDX-License-Identifier: Apache-2.0
"""Starts the cluster of ``docker-compose.yaml`` as processes, and runs an example DAG on its workers.

``python -m devstack.cluster [--exit] [--workers N] [--slots N] [--concurrency N] [--folder FOLDER]``,
or ``make cluster``. It uses the simulator of getimg.ai: nothing is billed. It stays up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from airflow_provider_getimg.testing.server import SimulatorError
from devstack.cluster.cluster import Cluster
from devstack.cluster.memory import memory_table
from devstack.process import StackError, tail

# A DAG without a schedule: unpausing a scheduled one would start a second run beside the one triggered here.
EXAMPLE = "getimg_mapped_prompts"
BATCH = "getimg_nightly_batch"


def run_example(cluster: Cluster, console: Console) -> None:
    """Run the example DAG, and print on which worker each task ran and where its files are."""
    rest = cluster.rest
    run_id = rest.run_dag(EXAMPLE)
    for task in rest.task_instances(EXAMPLE, run_id):
        index = f"[{task['map_index']}]" if task["map_index"] >= 0 else ""
        _say(console, f"{task['task_id']}{index}: {task['state']} on {task['hostname']}")
    for row in rest.xcom(EXAMPLE, run_id, "save_to_s3"):
        _say(console, f"{row['uri']}: {row['bytes']} bytes")


def watch(cluster: Cluster) -> None:
    """Block until Ctrl-C, or until a component dies."""
    with contextlib.suppress(KeyboardInterrupt):
        while all(part.running for part in cluster.components.values()):
            time.sleep(0.5)
        dead = next(part for part in cluster.components.values() if not part.running)
        raise StackError(f"{dead.name} has died.", tail(dead.log))


def show(cluster: Cluster, console: Console) -> None:
    """Print where everything is, and what to do next."""
    for name, where in {
        "Airflow": f"{cluster.url} (no login needed)",
        "SeaweedFS, an S3 server": f"{cluster.s3.endpoint_url}, bucket {cluster.bucket}",
        "access key": cluster.s3.access_key,
        "secret key": cluster.s3.secret_key,
        "Simulator of getimg.ai": f"{cluster.simulator.url}, key {cluster.simulator.api_key}",
        "Logs": f"{cluster.folder.path}/logs",
        "A batch": f"{cluster.url}/dags/{BATCH}: unpause it, then Trigger",
    }.items():
        _say(console, f"{name}: {where}")


def _say(console: Console, text: str) -> None:
    # Without wrapping: a URL broken across two lines can't be copied.
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the whole cluster as processes on loopback.")
    parser.add_argument("--exit", action="store_true", help="end after the example DAG")
    parser.add_argument("--workers", type=int, default=2, help="Celery workers (default: 2)")
    parser.add_argument("--slots", type=int, default=8, help="tasks at once on each (default: 8)")
    parser.add_argument("--concurrency", type=int, default=4, help="slots of the pool getimg (default: 4)")
    parser.add_argument("--folder", type=Path, help="a new folder for logs and data, which is kept")
    arguments = parser.parse_args()
    # SIGTERM ends it as Ctrl-C does, along with everything that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    started = time.monotonic()
    _say(console, "Starting the cluster: about 30 seconds on two cores")
    try:
        with Cluster(
            workers=arguments.workers,
            slots=arguments.slots,
            concurrency=arguments.concurrency,
            folder=arguments.folder,
        ) as cluster:
            _say(console, f"Healthy after {time.monotonic() - started:.0f} s. Running {EXAMPLE}")
            run_example(cluster, console)
            console.print(memory_table(("now", cluster.memory())))
            show(cluster, console)
            if not arguments.exit:
                _say(console, "It stays up until Ctrl-C.")
                watch(cluster)
    except (SimulatorError, StackError) as error:
        _say(console, f"\n{error}")
        return 1
    except KeyboardInterrupt:
        _say(console, "\nEnded.")
        return 130
    _say(console, "\nEnded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
