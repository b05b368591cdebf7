# SPDX-License-Identifier: Apache-2.0
"""The cost of waiting for many videos at once in the triggerer's process: polls, CPU and memory."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING

import httpx
from rich.table import Table

from benchmarks.report import Options, Report, Target

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.process import Usage
    from benchmarks.testbed import Testbed

MIB = 2**20
REQUEST = {"model": "seedance-v1-pro", "prompt": "a benchmark"}
POLL_INTERVAL = 10.0
SECONDS, QUICK_SECONDS = 60.0, 12.0
COUNTS, QUICK_COUNTS = (1, 200, 1000), (1, 20)
# Limits: the share of one core, for 200 videos; the busiest second as a multiple of the average, as polls should be spread evenly.
LIMIT_SHARE = 0.10
LIMIT_SPREAD = 2.0


def run(testbed: Testbed, options: Options) -> Report:
    """Wait for each number of videos in a new process; no video completes in that time."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    counts = QUICK_COUNTS if options.quick else COUNTS
    testbed.simulator.settings(video_latency=3600)
    ids = _submit(testbed, max(counts))
    usages: dict[int, Usage] = {}
    polls: dict[int, list[int]] = {}
    for count in counts:
        polled = testbed.folder / "polls.txt"
        usages[count] = testbed.run_worker(
            "benchmarks.video_worker",
            by="triggers",
            ids=ids[:count],
            seconds=seconds,
            poll_interval=POLL_INTERVAL,
            polls=str(polled),
        )
        polls[count] = _by_second(polled)
        options.progress(f"videos: {count} pending: {sum(polls[count]) / seconds:.1f} polls a second")
    rows = [
        asdict(usages[count])
        | {"videos": count, "polls_by_second": polls[count], "extra_bytes": usages[count].extra_bytes}
        for count in counts
    ]
    table = Table("videos", "polls a second", "most in a second", "CPU, % of a core", "MiB above idle")
    for count in counts:
        usage = usages[count]
        table.add_row(
            str(count),
            f"{sum(polls[count]) / usage.seconds:.1f}",
            str(max(polls[count])),
            f"{100 * usage.cpu_seconds / usage.seconds:.1f}",
            f"{usage.extra_bytes / MIB:.1f}",
        )
    many = counts[1]
    share = usages[many].cpu_seconds / usages[many].seconds
    # Skip the first interval, in which nothing is due.
    settled = polls[many][int(POLL_INTERVAL) :] or polls[many]
    spread = max(settled) / max(1.0, statistics.mean(settled))
    return Report(
        name="videos",
        title=f"Waiting for videos in one process, polled every {POLL_INTERVAL:g} s for {seconds:g} s",
        parameters={"poll_interval": POLL_INTERVAL, "seconds": seconds},
        runs=rows,
        summary=rows,
        targets=[
            Target(
                f"{many} videos: under {LIMIT_SHARE:.0%} of a core",
                f"{share:.1%}",
                share < LIMIT_SHARE,
            ),
            Target(
                f"{many} videos: no second with {LIMIT_SPREAD:g} times as many polls as on average",
                f"{spread:.2f} times",
                spread < LIMIT_SPREAD,
            ),
        ],
        tables=[table],
    )


def _submit(testbed: Testbed, count: int) -> list[str]:
    headers = {"Authorization": f"Bearer {testbed.simulator.api_key}"}
    with httpx.Client(base_url=testbed.simulator.url, headers=headers, trust_env=False, timeout=60) as http:
        responses = [http.post("/v2/videos/generations", json=REQUEST) for _ in range(count)]
    return [response.raise_for_status().json()["id"] for response in responses]


def _by_second(path: Path) -> list[int]:
    """Return the number of polls in each second, from the file with their times."""
    times = [float(line) for line in path.read_text().split()]
    counts = [0] * (int(max(times)) + 1) if times else [0]
    for moment in times:
        counts[int(moment)] += 1
    return counts
