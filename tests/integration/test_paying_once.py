# SPDX-License-Identifier: Apache-2.0
"""
No automatic retry pays twice: real task processes, checked against the simulator's ledger.

The DAGs are in ``dags/paying_once.py``. An image costs 0.04 USD.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.version_compat import HAS_RETRY_POLICY

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator

PRICE = 0.04
MAY = "It may have been billed."

# By name: the fault that the simulator injects, and the images billed under "fail".
LOST = {
    "drop before billing": ({"kind": "drop_before_billing"}, 0),
    "drop after billing": ({"kind": "drop_after_billing"}, 1),
    "cut-off 200": ({"kind": "truncate"}, 1),
    "html": ({"kind": "html"}, 1),
    "hang": ({"kind": "hang", "seconds": 60}, 1),
    "slow first byte": ({"kind": "slow_first_byte", "seconds": 60}, 1),
    "slow drip": ({"kind": "slow_body", "seconds": 60}, 1),
    "408": ({"kind": "status", "status": 408}, 0),
    "409": ({"kind": "status", "status": 409}, 0),
    "500": ({"kind": "status", "status": 500}, 0),
    "503": ({"kind": "status", "status": 503}, 0),
}
SAMPLE = ("drop after billing", "slow drip", "500")


def sampled(faults: dict[str, Any], sample: tuple[str, ...]) -> list[Any]:
    """Return faults as parameters: a sample for every run, all of them for the long one."""
    return [
        pytest.param(*value, id=name, marks=() if name in sample else pytest.mark.long)
        for name, value in faults.items()
    ]


def play(simulator: GetimgSimulator, fault: dict[str, Any], times: int = 1) -> None:
    simulator.faults.add({"on": "image", "times": times, **fault})


def billed(simulator: GetimgSimulator) -> float:
    return simulator.ledger.total_cost


def posts(simulator: GetimgSimulator) -> int:
    return len(simulator.ledger)


@pytest.mark.parametrize(("fault", "images"), sampled(LOST, SAMPLE))
def test_lost_response_fails_the_task_without_a_retry_and_logs_what_to_do(
    simulator, connections, run, fault, images
):
    play(simulator, fault)
    ended = run("paying_once", conn="getimg_hasty")
    assert (ended.state, ended.tries(), posts(simulator)) == ("failed", 1, 1)
    assert billed(simulator) == pytest.approx(images * PRICE)
    log = ended.log()
    assert MAY in log
    assert "The request was sent at 20" in log
    assert "clear the task" in log
    assert "set on_unknown_outcome='resubmit'" in log


@pytest.mark.parametrize(("fault", "images"), sampled(LOST, ("drop after billing",)))
def test_request_with_a_lost_response_is_sent_again_under_resubmit_with_a_log_message(
    simulator, connections, run, fault, images
):
    play(simulator, fault)
    ended = run("paying_once", conn="getimg_hasty", on_unknown_outcome="resubmit")
    assert (ended.state, ended.tries(), posts(simulator)) == ("success", 2, 2)
    assert billed(simulator) == pytest.approx((images + 1) * PRICE)
    assert "A retry sends it again" in ended.log(try_number=1)
    assert (
        "on_unknown_outcome is 'resubmit': the request is sent again, and may be billed twice."
        in ended.log(try_number=2)
    )


@pytest.mark.parametrize(("fault", "images"), sampled(LOST, ("drop after billing",)))
def test_lost_response_fails_each_mapped_task_without_a_retry(simulator, connections, run, fault, images):
    play(simulator, fault, times=3)
    ended = run("paying_once_mapped", conn="getimg_hasty")
    tasks = ended.tasks("generate")
    assert [(task["state"], task["try_number"]) for task in tasks] == [("failed", 1)] * 3
    assert posts(simulator) == 3
    assert billed(simulator) == pytest.approx(3 * images * PRICE)


REFUSED = {
    str(status): ({"kind": "status", "status": status}, status)
    for status in (400, 401, 402, 403, 404, 413, 422)
}


@pytest.mark.parametrize(("fault", "status"), sampled(REFUSED, ("402",)))
def test_rejected_request_fails_without_a_retry_and_is_not_billed(simulator, run, fault, status):
    play(simulator, fault, times=9)
    ended = run("paying_once")
    assert (ended.state, ended.tries(), posts(simulator), billed(simulator)) == ("failed", 1, 1, 0)
    assert f"getimg.ai refused the request ({status} " in ended.log()
    assert "Nothing was billed." in ended.log()


def test_429_with_retry_after_is_retried_and_its_wait_is_logged(simulator, run):
    play(simulator, {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}})
    ended = run("paying_once")
    assert (ended.state, ended.tries(), posts(simulator)) == ("success", 2, 2)
    assert billed(simulator) == pytest.approx(PRICE)
    first, second = (post.received_at for post in simulator.ledger.entries)
    # Before Airflow 3.3 the task's own retry_delay applies, which is a second.
    assert (second - first).total_seconds() >= (2 if HAS_RETRY_POLICY else 1)
    assert "It asks clients to wait 2 seconds. Nothing was billed." in ended.log(try_number=1)


@pytest.mark.long
def test_429_without_retry_after_is_retried(simulator, run):
    play(simulator, {"kind": "status", "status": 429})
    ended = run("paying_once")
    assert (ended.state, ended.tries(), posts(simulator)) == ("success", 2, 2)
    assert billed(simulator) == pytest.approx(PRICE)


def test_429_with_a_short_retry_after_is_waited_out_within_the_same_try(simulator, run):
    play(simulator, {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, times=2)
    ended = run("paying_once", rate_limit_wait=20)
    assert (ended.state, ended.tries(), posts(simulator)) == ("success", 1, 3)
    assert billed(simulator) == pytest.approx(PRICE)
    assert "Rate limited, nothing was billed: retrying in 1.0 seconds" in ended.log()


def test_failure_to_connect_is_retried(simulator, connections, run):
    ended = run("paying_once", conn="getimg_nowhere")
    assert (ended.state, ended.tries(), posts(simulator)) == ("failed", 3, 0)
    for try_number in (1, 2, 3):
        assert "No connection to http://127.0.0.1:1 was made" in ended.log(try_number=try_number)


def test_retry_reuses_the_recorded_response_unless_the_request_has_changed(simulator, run):
    ended = run("fails_after_the_response", fails=2)
    assert (ended.state, ended.tries("generate"), ended.tries("changes")) == ("success", 3, 3)
    prompts = [post["prompt"] for post in simulator.ledger.raw()["posts"]]
    assert prompts.count("A red fox") == 1
    assert sorted(prompts) == ["A red fox", "A red fox 1", "A red fox 2", "A red fox 3"]
    assert billed(simulator) == pytest.approx(4 * PRICE)
    for try_number in (2, 3):
        log = ended.log(try_number=try_number)
        assert re.search(
            r"Reusing generation \S+ from try 1 \(requested 0:00:\d\d ago\)\. Nothing was billed\.", log
        )
    assert "The request has changed since try 1" in ended.log("changes", try_number=2)
    assert ended.xcom()["id"] in {post["id"] for post in simulator.ledger.raw()["posts"]}


def test_clear_after_success_generates_a_new_image(simulator, run):
    ended = run("paying_once")
    first = ended.xcom()["id"]
    ended.clear("generate")
    assert ended.state == "success"
    assert ended.xcom()["id"] != first
    assert (posts(simulator), billed(simulator)) == (2, pytest.approx(2 * PRICE))
    assert "The task was cleared since try 1: a new request is sent, and billed." in ended.log(try_number=2)


def test_clear_returns_a_paid_response_that_never_reached_xcom(simulator, run):
    ended = run("push_fails", fails=2)
    assert (ended.state, ended.tries(), posts(simulator)) == ("failed", 2, 1)
    log = ended.log(try_number=1)
    assert "was billed and could not be pushed to XCom. Neither a retry nor a Clear pays for it again." in log
    ended.clear("generate")
    assert ended.state == "success"
    [post] = simulator.ledger.raw()["posts"]
    assert ended.xcom()["id"] == post["id"]
    # It is delivered now: the next Clear generates another image.
    ended.clear("generate")
    assert ended.state == "success"
    assert ended.xcom()["id"] != post["id"]
    assert (posts(simulator), billed(simulator)) == (2, pytest.approx(2 * PRICE))


def test_clear_after_a_lost_response_generates_a_new_image(simulator, run):
    play(simulator, {"kind": "drop_after_billing"})
    ended = run("paying_once")
    assert ended.state == "failed"
    ended.clear("generate")
    assert ended.state == "success"
    assert (posts(simulator), billed(simulator)) == (2, pytest.approx(2 * PRICE))


@pytest.mark.parametrize(
    ("on_unknown_outcome", "state", "images"), [("fail", "failed", 1), ("resubmit", "success", 2)]
)
def test_files_expired_before_a_retry_are_reported_and_paid_again_only_under_resubmit(
    simulator, run, on_unknown_outcome, state, images
):
    simulator.settings(media_lifetime=1)
    ended = run("expired_on_retry", on_unknown_outcome=on_unknown_outcome)
    assert (ended.state, posts(simulator)) == (state, images)
    assert billed(simulator) == pytest.approx(images * PRICE)
    log = ended.log(try_number=2)
    assert "and its files are gone: they were deleted at" in log
    ends = {"fail": "It was billed.", "resubmit": "the request is sent again, and is billed again."}
    assert ends[on_unknown_outcome] in log


def test_request_above_max_cost_is_not_sent(simulator, run):
    ended = run("paying_once", max_cost="0.01")
    assert (ended.state, ended.tries(), posts(simulator)) == ("failed", 1, 0)
    assert (
        "costs 0.04 USD, more than max_cost (0.01 USD): nothing was sent. Nothing was billed." in ended.log()
    )
    assert run("paying_once", max_cost="0.04").state == "success"


def test_retry_settings_of_the_user_override_the_provider_defaults(simulator, run):
    # For every request: on a busy machine, a task may start after another one's retry.
    play(simulator, {"kind": "drop_after_billing"}, times=99)
    ended = run("users_own")
    expected = {"by_default_args": 2, "no_policy": 2, "no_retries": 1}
    own = {"own_policy": 3, "mapped_own_policy": 2} if HAS_RETRY_POLICY else {}
    assert {task_id: ended.tries(task_id) for task_id in expected | own} == expected | own
    by_prompt = Counter(post["prompt"] for post in simulator.ledger.raw()["posts"])
    # Whatever a policy retries, only "resubmit" sends a request again.
    prompts = {"default args": 2, "no policy": 1, "no retries": 1}
    assert by_prompt == prompts | {task_id.replace("_", " "): 1 for task_id in own}
    if own:
        assert "sent this request at" in ended.log("own_policy", try_number=2)
