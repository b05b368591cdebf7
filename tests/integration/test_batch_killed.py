# SPDX-License-Identifier: Apache-2.0
"""
Batches killed with SIGKILL: after Airflow's own retries, each row was paid once, and is saved or reported.

A moment is a line of the provider's code, in any thread of a batch, or of Airflow's task runner after it (the push of the
XCom): the process dies right before executing it. Meanwhile, the simulator injects faults of every kind.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.execution_time import task_runner

import airflow_provider_getimg
from devstack.process import StackError
from tests.integration.test_batch import (
    FILE_BYTES,
    PRICE,
    denied,
    manifest_of,
    refusing_connection,
    rows,
    saved_objects,
    undisturbed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow, SeaweedFS
    from tests.support.s3_faults import S3FaultProxy

ROWS = 60
CONCURRENCY = 8
# The API rejects them: prompts against the content policy, and a resolution that the model doesn't have.
REFUSED = {7: {"prompt": "gore"}, 23: {"resolution": "4K"}, 41: {"prompt": "gore, again"}}


def faults() -> list[dict[str, Any]]:
    """
    Return the faults that the simulator injects over all tries: rejections, lost responses and broken downloads.

    They are spread out, as five consecutive lost responses stop a batch.
    """
    image: list[dict[str, Any]] = [
        {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}, "times": 2},
        {"kind": "drop_after_billing"},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 400},
        {"kind": "truncate"},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 500, "billed": True},
        {"kind": "drop_before_billing"},
    ]
    download: list[dict[str, Any]] = [
        {"kind": "truncate"},
        {"kind": "status", "status": 503},
        {"kind": "wrong_length"},
        {"kind": "drop_before_billing"},
        {"kind": "status", "status": 500},
    ]
    played = []
    for fault in image:
        played += [undisturbed(7), {"on": "image", **fault}]
    for fault in download:
        played += [undisturbed(9, "download"), {"on": "download", **fault}]
    return played


#: The number of lost responses among :func:`faults`.
LOST = 5

# Places right before a change of what is recorded, or of what is in S3.
TURNING_POINTS = (
    "journal.py:_commit:#100",
    "client.py:generate_image:#40",  # intent recorded, not sent
    "client.py:_send:#333",
    "ledger.py:record_response:#50",  # paid, response not recorded
    "ledger.py:rollback:#1",  # rejected, intent still recorded
    "ledger.py:record_unknown:#2",
    "limiter.py:on_rate_limited:#2",
    "row_steps.py:save:#60",  # paid and recorded, not saved
    "download.py:_receive:#90",
    "store.py:_put:#100",  # downloaded, no object yet
    "row_steps.py:_saved:#99",
    "row_steps.py:_saved:#200",
    "manifest.py:write:#1",  # nothing sent
    "manifest.py:write:#2",  # all saved, nothing reported
    "lineage.py:emit_asset_events:",
    "task_runner.py:_push_xcom_if_needed:",
)


@pytest.mark.parametrize("test", ["test_killed.py", "test_batch_killed.py"])
def test_each_function_where_a_process_is_killed_exists_in_the_code(test):
    """If the function is gone, no process is killed, and the test of the kill checks nothing."""
    package = Path(airflow_provider_getimg.__file__).parent
    for file, function in re.findall(r'"(\w+\.py):(\w+):', Path(__file__).with_name(test).read_text()):
        sources = [Path(task_runner.__file__)] if file == "task_runner.py" else package.rglob(file)
        assert any(f"def {function}(" in source.read_text() for source in sources), (file, function)


def spread(lines: int, moments: int) -> list[int]:
    """Return ``moments`` line numbers, evenly from the first line to the last."""
    return [1 + (lines - 2) * number // (moments - 1) for number in range(moments)]


@pytest.fixture
def killed_batch(simulator: GetimgSimulator, seaweedfs: SeaweedFS, run, tmp_path: Path):
    """Return a function that runs a batch whose tries die at the given moments, and checks the bill and the objects."""

    def play(
        moments: list[int | str],
        on_unknown_outcome: str = "fail",
        *,
        name: str = "killed",
        **params: Any,
    ) -> tuple[Any, Counter[str]]:
        resubmits = on_unknown_outcome == "resubmit"
        simulator.reset()
        simulator.settings(latency=0.1, file_size=FILE_BYTES)
        simulator.faults.add(*faults())
        witness = tmp_path / name
        witness.mkdir()
        prefix = f"{tmp_path.name}/{name}"
        ended = run(
            "batch",
            requests=rows(ROWS, REFUSED),
            key=f"{prefix}/{{row:04}}.{{extension}}",
            concurrency=CONCURRENCY,
            # Under "resubmit", lost requests are sent again, so only the rejected rows fail.
            max_failures=len(REFUSED) if resubmits else ROWS // 2,
            on_unknown_outcome=on_unknown_outcome,
            moments=moments,
            witness=str(witness),
            timeout=240,
            **params,
        )
        where = {path.name: path.read_text()[-200:] for path in witness.iterdir() if path.name.isdecimal()}
        deaths = sum(bool(place) for place in where.values()) if moments != [0] else 0
        seen = check_batch(ended, simulator, seaweedfs, prefix, deaths, resubmits, str(where))
        seen["deaths"] = deaths
        return ended, seen

    return play


def logs_of(ended: Any) -> list[str]:
    """Return the logs of all tries that began."""
    logs = []
    for number in range(1, ended.tries() + 1):
        with suppress(StackError):
            logs.append(ended.log(try_number=number))
    return logs


def check_batch(
    ended: Any,
    simulator: GetimgSimulator,
    seaweedfs: SeaweedFS,
    prefix: str,
    deaths: int,
    resubmits: bool,
    where: str,
) -> Counter[str]:
    """Check each row against its bill, and the bucket against the manifest; return the counts of outcomes."""
    logs = logs_of(ended)
    assert ended.state == "success", (where, logs[-1][-3000:])
    summary = ended.xcom()
    lines = manifest_of(seaweedfs, summary["manifest"])
    ledger = simulator.ledger.raw()
    billed = Counter(post["prompt"] for post in ledger["posts"] if post["billed"])
    assert [line["row"] for line in lines] == list(range(summary["requested"])), where

    saved = {line["uri"]: line["sha256"] for line in lines if line["outcome"] in ("saved", "reused")}
    failed = [line for line in lines if line["outcome"] == "failed"]
    assert len(saved) + len(failed) == len(lines), where
    assert all(line["error"] for line in failed), where
    assert saved_objects(seaweedfs, prefix, but=summary["manifest"]) == saved, where
    assert set(REFUSED) <= {line["row"] for line in failed}, where

    answered = {post["id"]: post["prompt"] for post in ledger["posts"] if post["billed"]}
    extra = 0
    for line in lines:
        prompt = line["request"]["prompt"]
        paid = billed.pop(prompt, 0)
        extra += max(0, paid - 1)
        if line["row"] in REFUSED:
            assert paid == 0, (where, line)
        elif line["outcome"] == "failed":
            assert not resubmits, (where, line)
            assert paid <= 1, (where, line)
        else:
            assert paid >= 1, (where, line)
            assert answered[line["generation_id"]] == prompt, (where, line)
            assert line["cost"] == PRICE, (where, line)
    assert not billed, where
    if not resubmits:
        assert extra == 0, where
        # Requests in flight or not yet recorded when a try died, lost responses, and the request that a fault rejects.
        assert len(failed) <= len(REFUSED) + deaths * 2 * CONCURRENCY + LOST + 1, where
    assert extra <= sum(log.count("sent again, and may be billed twice") for log in logs), where

    assert (summary["saved"], summary["failed"]) == (len(saved), len(failed)), where
    assert summary["total_cost"] == pytest.approx(PRICE * len(saved)), where
    assert summary["total_cost"] <= ledger["billed_total"] + 1e-9, where
    for log in logs:
        assert simulator.api_key not in log, where
        assert "sig=" not in log, where
    return Counter(line["outcome"] for line in lines) + Counter(tries=ended.tries(), extra=extra)


def test_batch_killed_three_times_pays_for_no_row_twice(killed_batch):
    ended, seen = killed_batch(
        ["ledger.py:record_response:#50", "row_steps.py:_saved:#60", "manifest.py:write:#2"]
    )
    assert seen["deaths"] == 3
    assert ended.tries() >= 4
    assert seen["reused"] >= 20


def test_killed_batch_under_resubmit_saves_every_row_that_the_api_accepts(killed_batch):
    ended, seen = killed_batch(["client.py:_send:#333"], "resubmit")
    assert seen["deaths"] == 1
    assert ended.tries() >= 2
    assert seen["saved"] + seen["reused"] == ROWS - len(REFUSED)


@pytest.mark.long
@pytest.mark.parametrize("on_unknown_outcome", ["fail", "resubmit"])
def test_batch_killed_at_any_moment_pays_twice_only_for_rows_logged_as_sent_again(
    killed_batch, tmp_path, on_unknown_outcome
):
    killed_batch([0], on_unknown_outcome, name="whole")
    lines = len((tmp_path / "whole" / "1").read_text().splitlines())
    died, reused = 0, 0
    moments = [*TURNING_POINTS, *spread(lines, 8)]
    if on_unknown_outcome == "resubmit":
        # Only the handling of lost responses differs, which a third of the moments covers.
        moments = moments[::3]
    for number, moment in enumerate(moments):
        # Every third batch is killed twice.
        second = [["row_steps.py:_saved:#30"], [], []][number % 3]
        _, seen = killed_batch([moment, *second], on_unknown_outcome, name=f"killed-{number}")
        died += seen["deaths"]
        reused += seen["reused"]
        print(number, moment, dict(seen))
    # Threads change the order of lines, and tries differ in length: some moments are never reached.
    assert died >= len(moments) - 3
    assert reused >= 5 * len(moments)


@pytest.fixture(scope="module")
def refusing(airflow_stack: Airflow, seaweedfs: SeaweedFS) -> Iterator[S3FaultProxy]:
    with refusing_connection(airflow_stack, seaweedfs, "aws_refusing_killed") as proxy:
        yield proxy


@pytest.mark.parametrize(
    "moments",
    [
        [],
        pytest.param(["ledger.py:record_response:#20", "row_steps.py:save:#30"], marks=pytest.mark.long),
        pytest.param(["store.py:_put:#300"], marks=pytest.mark.long),
        pytest.param(["history.py:note_saved:#8", "client.py:_send:#150"], marks=pytest.mark.long),
        pytest.param(["report.py:check:", "manifest.py:write:#2"], marks=pytest.mark.long),
    ],
    ids=str,
)
def test_clear_after_s3_denials_and_kills_pays_again_only_for_delivered_or_lost_rows(
    simulator, seaweedfs, refusing, run, tmp_path, moments
):
    """S3 denies writes midway, and all of them after the first Clear; it works after the second. Processes die meanwhile."""
    simulator.settings(latency=0.1, file_size=FILE_BYTES)
    refusing.set_faults([denied(".jpg", skip=12)])
    prefix = f"{tmp_path.name}/images"
    key = f"{prefix}/{{row:04}}-{{generation_id}}.{{extension}}"
    params = {
        "key": key,
        "concurrency": CONCURRENCY,
        "aws_conn": "aws_refusing_killed",
        "witness": str(tmp_path),
    }
    ended = run("batch", requests=rows(ROWS), moments=moments, timeout=240, **params)
    assert ended.state == "failed"
    first = billed_by_prompt(simulator)
    delivered = prompts_in_s3(simulator, seaweedfs, prefix)
    lost = [
        line["request"]["prompt"]
        for line in lines_of(ended, seaweedfs)
        if "sent this request" in str(line["error"])
    ]

    # If the write check fails, nothing is billed.
    refusing.set_faults([denied(prefix)])
    ended.clear("generate")
    assert ended.state == "failed"
    assert billed_by_prompt(simulator) == first

    refusing.clear()
    ended.clear("generate")
    assert ended.state == "success", logs_of(ended)[-1][-3000:]
    assert ended.xcom()["saved"] == ROWS
    for prompt, paid in billed_by_prompt(simulator).items():
        again = prompt in delivered or (prompt in lost and first[prompt])
        assert paid == first[prompt] + (again or not first[prompt]), prompt
        assert paid <= 2, prompt


def billed_by_prompt(simulator: GetimgSimulator) -> Counter[str]:
    return Counter(post["prompt"] for post in simulator.ledger.raw()["posts"] if post["billed"])


def lines_of(ended: Any, seaweedfs: SeaweedFS) -> list[dict[str, Any]]:
    return manifest_of(seaweedfs, ended.xcom()["manifest"])


def prompts_in_s3(simulator: GetimgSimulator, seaweedfs: SeaweedFS, prefix: str) -> set[str]:
    """Return the prompts of the images that were saved."""
    ids = {post["id"]: post["prompt"] for post in simulator.ledger.raw()["posts"]}
    images = [uri for uri in saved_objects(seaweedfs, prefix) if uri.endswith(".jpg")]
    return {ids[uri.rpartition("/")[2].partition("-")[2].removesuffix(".jpg")] for uri in images}
