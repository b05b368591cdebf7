# SPDX-License-Identifier: Apache-2.0
"""How many images to make, how fast the API is, and the check that they were made."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.testbed import REQUEST
from devstack import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.testbed import Testbed

MIB = 2**20
#: Every worker saves its images under this prefix, and nothing else.
PREFIX = "images/"
#: What all requests share; each has its own prompt, to tell them apart in the ledger.
SHARED = {name: value for name, value in REQUEST.items() if name != "prompt"}


@dataclass(frozen=True)
class Workload:
    """Images to make.

    :param latency: Seconds that the API takes for an image.
    :param concurrency: Simultaneous requests; mapped tasks ignore it.
    """

    images: int
    latency: float
    concurrency: int

    @property
    def ideal_seconds(self) -> float:
        """The time that the API alone takes if all slots are always full."""
        return -(-self.images // self.concurrency) * self.latency


def requests(images: int) -> list[dict[str, Any]]:
    """Return a request for each image."""
    return [{"prompt": f"a benchmark, {number}"} for number in range(images)]


def requests_lines(images: int) -> bytes:
    """Return the requests as JSON Lines."""
    return "".join(json.dumps(request) + "\n" for request in requests(images)).encode()


@contextlib.contextmanager
def verified(testbed: Testbed, workload: Workload) -> Iterator[str]:
    """Yield an empty bucket, with the API at this latency; at the end, check that each image was billed once and saved.

    :raises devstack.StackError: It was not.
    """
    # Draws the picture that all files of this size share.
    testbed.make_files(1, MIB)
    testbed.simulator.ledger.clear()
    testbed.simulator.settings(latency=workload.latency)
    try:
        with testbed.bucket() as bucket:
            yield bucket
            _verify(testbed, bucket, workload.images)
    finally:
        testbed.simulator.settings(latency=0.0)


def _verify(testbed: Testbed, bucket: str, images: int) -> None:
    billed = Counter(entry.prompt for entry in testbed.simulator.ledger.billed)
    if billed != Counter(request["prompt"] for request in requests(images)):
        raise StackError(f"{billed.total()} images of {len(billed)} prompts were billed instead of {images}.")
    pages = testbed.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX)
    sizes = [item["Size"] for page in pages for item in page.get("Contents", [])]
    if sizes != [MIB] * images:
        raise StackError(f"The bucket holds {len(sizes)} images instead of {images}, or not all of each.")
