# SPDX-License-Identifier: Apache-2.0
"""Several tasks with one API key, at the limits of a real account, with time running twenty times as fast."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

ROWS = 30
SLOTS = 5


@pytest.mark.long
def test_two_batches_and_single_images_share_the_limits_of_the_account(
    airflow_stack: Airflow, simulator: GetimgSimulator, begin, prefix
):
    simulator.settings(preset="account", time_scale=20)
    runs = [
        (
            "batch",
            begin(
                "batch",
                requests=[{"prompt": f"{name} {number}"} for number in range(ROWS)],
                key=f"{prefix}/{name}/{{row:04}}.{{extension}}",
                concurrency=8,
            ),
        )
        for name in ("first", "second")
    ]
    runs += [
        ("paying_once", begin("paying_once", prompt=f"single {number}", rate_limit_wait=120))
        for number in range(2)
    ]
    for dag_id, run_id in runs:
        assert airflow_stack.wait(dag_id, run_id) == "success"
        # Rate limits use up no try.
        assert [task["try_number"] for task in airflow_stack.task_instances(dag_id, run_id)] == [1]
    posts = simulator.ledger.raw()["posts"]
    made = [post for post in posts if post["status"] == 200]
    assert len({post["prompt"] for post in made}) == len(made) == 2 * ROWS + 2
    assert {post["status"] for post in posts} == {200, 429}

    def seconds(post: dict[str, str], since: datetime, until: datetime) -> float:
        begun, ended = (datetime.fromisoformat(post[name]) for name in ("received_at", "ended_at"))
        return max(0.0, (min(ended, until) - max(begun, since)).total_seconds())

    moments = {
        name: [datetime.fromisoformat(post["received_at"]) for post in made if name in post["prompt"]]
        for name in ("first", "second")
    }
    # From when both batches are sending until one has sent its last request.
    since, until = max(map(min, moments.values())), min(map(max, moments.values()))
    for name in moments:
        held = sum(seconds(post, since, until) for post in made if name in post["prompt"])
        # Two fifths of its share, which is half of the slots: a batch takes only 20 s, part of it to find its share.
        print(f"{name}: {held / (until - since).total_seconds():.2f} of {SLOTS} slots")
        assert held / (until - since).total_seconds() > SLOTS / 5
    # Until the last request of both is sent.
    since, until = min(map(min, moments.values())), max(map(max, moments.values()))
    used = sum(seconds(post, since, until) for post in made) / (until - since).total_seconds()
    print(f"all: {used:.2f} of {SLOTS} slots")
    assert used > 0.8 * SLOTS
