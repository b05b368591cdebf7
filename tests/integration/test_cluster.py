# SPDX-License-Identifier: Apache-2.0
"""
The cluster of ``docker-compose.yaml``, run as processes: healthy, at work, and with its components killed.

Every kill is a SIGKILL. The results are read from the simulator's ledger and the bucket.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from devstack.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
# Enough for a DAG run on two cores that the whole cluster shares.
RUN_SECONDS = 600.0


# Of getimg_nightly_batch: concurrent requests of a task, and concurrent tasks.
CONCURRENCY = TASKS = 4
IN_FLIGHT = CONCURRENCY * TASKS
NIGHTLY = "getimg/nightly/"
# Seconds: a bit less than a task waits within a try.
RETRY_AFTER = 28


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Yield a cluster as the compose file describes it, with shorter timeouts and no schedules."""
    env = {
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5",
        # Still longer than a restart of the API server on a busy machine: a task that is declared dead in that time
        # continues unnoticed, and the next try does not get what it pays for.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "90",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
    }
    # Starting it fails if it is not healthy within 60 s.
    with Cluster(
        dags=[REPOSITORY / "dags"],
        # Few enough that the tasks need both workers.
        slots=TASKS // 2,
        concurrency=IN_FLIGHT,
        env=env,
        simulator={"latency": 1.0},
    ) as running:
        yield running


@pytest.fixture
def whole(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster with all components running and an empty ledger."""
    for part in cluster.components.values():
        if not part.running:
            part.start()
    cluster.wait_until_healthy()
    cluster.simulator.reset()
    yield cluster
    cluster.simulator.faults.clear()


def trigger(cluster: Cluster, dag_id: str, **conf: Any) -> str:
    cluster.rest.wait_for_dag(dag_id)
    cluster.rest.unpause(dag_id)
    return cluster.rest.trigger(dag_id, conf=conf)


def wait(cluster: Cluster, dag_id: str, run_id: str) -> None:
    state = cluster.rest.wait(dag_id, run_id, RUN_SECONDS)
    assert state == "success", cluster.rest.failed_log(dag_id, run_id)


def running_on(cluster: Cluster, worker: str, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    return [
        task
        for task in cluster.rest.task_instances(dag_id, run_id)
        if task["state"] == "running" and task["hostname"] == worker
    ]


def billed(cluster: Cluster) -> Counter[str]:
    return Counter(post["prompt"] for post in cluster.simulator.ledger.raw()["posts"] if post["billed"])


def test_all_health_checks_of_the_compose_file_pass(whole: Cluster):
    checked = {name: whole.check(name) for name, part in whole.components.items() if part.healthcheck}
    assert len(checked) == 6
    assert {name: check.returncode for name, check in checked.items()} == dict.fromkeys(checked, 0)


def test_health_check_of_the_compose_file_fails_only_for_the_killed_worker(whole: Cluster):
    whole.workers[1].kill()
    assert whole.check("worker-2").returncode == 1
    assert whole.check("worker-1").returncode == 0
    assert whole.unhealthy() == ["worker-2"]


def test_both_connections_exist_and_testing_the_getimg_connection_succeeds(whole: Cluster):
    found = {
        entry["connection_id"]: entry for entry in whole.rest.request("GET", "/connections")["connections"]
    }
    assert set(found) == {"aws_default", "getimg_default"}
    response = whole.rest.request(
        "POST",
        "/connections/test",
        body={
            "connection_id": "getimg_default",
            "conn_type": "getimg",
            "host": found["getimg_default"]["host"],
            "password": whole.simulator.api_key,
        },
    )
    assert response["status"], response


def test_pool_has_the_configured_number_of_slots(whole: Cluster):
    assert whole.rest.request("GET", "/pools/getimg")["slots"] == IN_FLIGHT


def test_daily_image_dag_runs_on_the_workers(whole: Cluster):
    run_id = trigger(whole, "getimg_daily_image")
    wait(whole, "getimg_daily_image", run_id)
    [row] = whole.rest.xcom("getimg_daily_image", run_id, "save_to_s3")
    head = whole.s3.client().head_object(Bucket=whole.bucket, Key=row["key"])
    assert head["ContentLength"] == row["bytes"]
    hosts = {task["hostname"] for task in whole.rest.task_instances("getimg_daily_image", run_id)}
    assert hosts <= {worker.name for worker in whole.workers}
    assert "Generated" in whole.rest.task_log("getimg_daily_image", run_id, "generate_image")


@dataclass
class Struck:
    """A run during which a worker, the broker and the API server were killed, one after the other."""

    state: str
    victims: list[dict[str, Any]]
    survivors: list[dict[str, Any]]
    unanswered: set[str]


def are_between_requests(cluster: Cluster, tasks: list[dict[str, Any]], task_of: Mapping[str, int]) -> bool:
    """Return whether all of these tasks are waiting out a rate limit, and will be for a while.

    :param task_of: The map index of the task that sends each prompt.
    """
    posts = cluster.simulator.ledger.raw()["posts"]
    if any(post["outcome"] is None for post in posts):
        return False
    last = {task_of[post["prompt"]]: post for post in posts}
    now = datetime.now(UTC)
    for task in tasks:
        post = last.get(task["map_index"])
        if post is None or post["status"] != 429:
            return False
        # Late enough that all concurrent requests have been sent, early enough that none is sent again before the kill.
        if not 3 <= (now - datetime.fromisoformat(post["received_at"])).total_seconds() <= RETRY_AFTER - 8:
            return False
        # A kill between the 429 and its record still results in a request whose outcome is unknown.
        notes = cluster.rest.task_state(
            task["dag_id"], task["dag_run_id"], task["task_id"], task["map_index"]
        )
        if any('"submitted"' in json.dumps(note) for note in notes.values()):
            return False
    return True


def strike(
    cluster: Cluster, dag_id: str, run_id: str, task_of: Mapping[str, int], *, between_requests: bool
) -> Struck:
    """Kill a worker, the broker and the API server while both workers run tasks, and wait for the run to end.

    :param task_of: The map index of the task that sends each prompt.
    :param between_requests: Kill when all tasks are waiting out a rate limit. While a request is in flight, it is
        unknown whether it will be billed: such a row is reported, and not paid again.
    """
    rest, simulator = cluster.rest, cluster.simulator
    at_least = len(billed(cluster)) + 6
    assert rest.poll(lambda: len(billed(cluster)) >= at_least, 120)
    if between_requests:
        refusal = {"kind": "status", "status": 429, "headers": {"Retry-After": str(RETRY_AFTER)}}
        simulator.faults.add({"on": "image", **refusal, "times": 10_000})
    else:
        # Billed, with a response long after the kill.
        simulator.faults.add({"on": "image", "kind": "slow_first_byte", "seconds": 30, "times": IN_FLIGHT})

    def unanswered() -> set[str]:
        return {post["prompt"] for post in simulator.ledger.raw()["posts"] if post["outcome"] is None}

    def ready() -> bool:
        at_work = [running_on(cluster, worker.name, dag_id, run_id) for worker in cluster.workers]
        if not all(at_work):
            return False
        if between_requests:
            return are_between_requests(cluster, [task for tasks in at_work for task in tasks], task_of)
        # More than the surviving worker can have.
        return len(unanswered()) > IN_FLIGHT / 2

    assert rest.poll(ready, 90)
    victims, survivors = (running_on(cluster, worker.name, dag_id, run_id) for worker in cluster.workers)
    left = unanswered()
    cluster.workers[0].kill()
    simulator.faults.clear()
    cluster.components["valkey"].restart()
    cluster.components["api-server"].restart()
    return Struck(rest.wait(dag_id, run_id, RUN_SECONDS), victims, survivors, left)


def check_retried(cluster: Cluster, dag_id: str, run_id: str, struck: Struck) -> None:
    """Check that the dead worker's tasks were retried once by the other worker, and no other task was."""
    # Not by id: each try has a different one.
    last = {
        (task["task_id"], task["map_index"]): task for task in cluster.rest.task_instances(dag_id, run_id)
    }
    assert struck.victims
    for victim in struck.victims:
        again = last[victim["task_id"], victim["map_index"]]
        assert again["try_number"] == victim["try_number"] + 1
        assert again["hostname"] == cluster.workers[1].name
    for survivor in struck.survivors:
        assert last[survivor["task_id"], survivor["map_index"]]["try_number"] == survivor["try_number"]


def stored(cluster: Cluster, prefix: str) -> set[str]:
    pages = (
        cluster.s3.client().get_paginator("list_objects_v2").paginate(Bucket=cluster.bucket, Prefix=prefix)
    )
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def empty_bucket(cluster: Cluster) -> None:
    """Delete all images: the nightly batch's keys contain the day, so a second run would find those of the first."""
    client = cluster.s3.client()
    for entry in client.list_objects_v2(Bucket=cluster.bucket).get("Contents", []):
        client.delete_object(Bucket=cluster.bucket, Key=entry["Key"])


def test_worker_ends_its_tasks_before_a_deploy_stops_it(whole: Cluster):
    dag_id, size = "getimg_nightly_batch", 8
    empty_bucket(whole)
    whole.simulator.settings(latency=5)
    run_id = trigger(whole, dag_id, articles=TASKS * size, rows_per_task=size, model="sketch-mini")
    worker = whole.workers[0]

    def its_tasks_wait_for_images() -> list[dict[str, Any]]:
        in_flight = [post for post in whole.simulator.ledger.raw()["posts"] if post["outcome"] is None]
        tasks = running_on(whole, worker.name, dag_id, run_id)
        return tasks if len(in_flight) == IN_FLIGHT else []

    ending = whole.rest.poll(its_tasks_wait_for_images, 120)
    assert ending
    assert worker.process is not None
    # Celery's main process, which is the first in a container or a pod: a warm shutdown.
    worker.process.descendants()[0].send_signal(signal.SIGTERM)
    wait(whole, dag_id, run_id)
    assert worker.process.wait(RUN_SECONDS) == 0

    assert Counter(billed(whole).values()) == {1: TASKS * size}
    tasks = {task["map_index"]: task for task in whole.rest.task_instances(dag_id, run_id)}
    assert {task["try_number"] for task in tasks.values()} == {1}
    assert all(tasks[task["map_index"]]["hostname"] == worker.name for task in ending)
    assert len([key for key in stored(whole, NIGHTLY) if not key.endswith(".jsonl")]) == TASKS * size


def test_mapped_prompts_are_paid_once_if_a_worker_the_broker_and_the_api_server_are_killed(
    whole: Cluster,
):
    dag_id, subjects = "getimg_mapped_prompts", [f"subject {number}" for number in range(24)]
    run_id = trigger(whole, dag_id, subjects=subjects)
    task_of = {f"{subject}, as a linocut print in two colours": n for n, subject in enumerate(subjects)}
    struck = strike(whole, dag_id, run_id, task_of, between_requests=True)
    assert struck.state == "success", whole.rest.failed_log(dag_id, run_id)
    check_retried(whole, dag_id, run_id, struck)
    assert billed(whole) == dict.fromkeys(task_of, 1)
    rows = whole.rest.xcom(dag_id, run_id, "save_to_s3")
    assert len({row["generation_id"] for row in rows}) == len(subjects)
    assert stored(whole, rows[0]["key"].rpartition("/")[0]) == {row["key"] for row in rows}


@pytest.mark.parametrize(
    "between_requests", [True, False], ids=["between requests", "while requests are under way"]
)
def test_batch_rows_are_never_paid_twice_if_a_worker_the_broker_and_the_api_server_are_killed(
    whole: Cluster, between_requests: bool
):
    dag_id, size = "getimg_nightly_batch", 40
    empty_bucket(whole)
    run_id = trigger(whole, dag_id, articles=TASKS * size, rows_per_task=size, model="sketch-mini")
    chunk_of = {
        f"Product photo of teapot {number}, studio light": number // size for number in range(TASKS * size)
    }
    struck = strike(whole, dag_id, run_id, chunk_of, between_requests=between_requests)
    check_retried(whole, dag_id, run_id, struck)

    bills = billed(whole)
    assert set(bills.values()) == {1}
    objects = stored(whole, NIGHTLY)
    manifests = {key for key in objects if key.endswith(".jsonl")}
    assert len(manifests) == TASKS
    read = whole.s3.client().get_object
    lines = [
        json.loads(line)
        for key in manifests
        for line in read(Bucket=whole.bucket, Key=key)["Body"].read().splitlines()
    ]
    by_prompt = {line["request"]["prompt"]: line for line in lines}
    assert set(by_prompt) == set(chunk_of)
    saved = {prompt: line for prompt, line in by_prompt.items() if line["outcome"] in ("saved", "reused")}
    uris = {line["uri"].removeprefix(f"s3://{whole.bucket}/") for line in saved.values()}
    assert uris == objects - manifests
    assert len(uris) == len(saved)
    assert set(saved) <= set(bills)
    if between_requests:
        assert struck.state == "success", whole.rest.failed_log(dag_id, run_id)
        assert set(saved) == set(chunk_of)
    else:
        lost = {prompt: line for prompt, line in by_prompt.items() if prompt not in saved}
        dead = {victim["map_index"] for victim in struck.victims}
        # The worker may have sent more requests between the look at the ledger and its death.
        known = {prompt for prompt in struck.unanswered if chunk_of[prompt] in dead}
        assert set() < known <= set(lost)
        assert all(chunk_of[prompt] in dead for prompt in lost)
        assert struck.state == "failed"
        assert all("may have been billed" in line["error"] for line in lost.values())


def test_videos_are_paid_once_if_the_triggerer_and_the_workers_are_killed(whole: Cluster):
    dag_id, rest, simulator = "getimg_product_video", whole.rest, whole.simulator
    simulator.settings(video_latency=40)
    run_ids = [trigger(whole, dag_id) for _ in range(4)]

    def films(state: str) -> list[dict[str, Any]]:
        tasks = [task for run_id in run_ids for task in rest.task_instances(dag_id, run_id)]
        return [task for task in tasks if task["task_id"] == "film" and task["state"] == state]

    assert rest.poll(lambda: len(films("deferred")) == len(run_ids), 180)
    # Only one of the two workers: if a worker dies after its task was deferred, but before Celery knows, Airflow's executor keeps
    # counting the task until it resumes. If it counted all of them, there would be no slot to resume in.
    for part in (whole.components["triggerer"], whole.workers[0]):
        part.kill()
        part.start()
    whole.wait_until_healthy()
    # Resumed tasks poll once more, and are held there.
    simulator.faults.add({"on": "video_status", "kind": "slow_first_byte", "seconds": 15, "times": 1000})
    [victim, *_] = rest.poll(lambda: films("running"), 180)
    next(worker for worker in whole.workers if worker.name == victim["hostname"]).kill()
    simulator.faults.clear()
    for run_id in run_ids:
        wait(whole, dag_id, run_id)
    tries = {film["dag_run_id"]: film["try_number"] for film in films("success")}
    assert len(tries) == len(run_ids)
    assert tries[victim["dag_run_id"]] == 2
    bills = Counter(post["kind"] for post in simulator.ledger.raw()["posts"] if post["billed"])
    assert bills == {"image": len(run_ids), "video": len(run_ids)}
    assert len(simulator.ledger) == 2 * len(run_ids)
    for run_id in run_ids:
        names = {key.rpartition("/")[2] for key in stored(whole, f"getimg/products/{run_id}/")}
        assert names == {"picture.png", "video.mp4"}


def test_task_queued_during_a_broker_outage_succeeds_in_its_first_try(whole: Cluster):
    whole.components["valkey"].kill()
    run_id = trigger(whole, "getimg_daily_image")
    scheduler = whole.components["scheduler"]
    # Two failed rounds of publishing take more than a second, which costs the try with Airflow's defaults.
    failing = "Celery Task Timeout Error"
    before = scheduler.log.read_text().count(failing)
    assert whole.rest.poll(lambda: scheduler.log.read_text().count(failing) >= before + 2, 60)
    whole.components["valkey"].start()
    wait(whole, "getimg_daily_image", run_id)
    tries = {
        task["task_id"]: task["try_number"]
        for task in whole.rest.task_instances("getimg_daily_image", run_id)
    }
    assert tries == {"generate_image": 1, "save_to_s3": 1}
    assert len(whole.simulator.ledger) == 1


def test_task_whose_queue_message_is_lost_with_the_broker_is_queued_again(whole: Cluster):
    for worker in whole.workers:
        worker.kill()
    run_id = trigger(whole, "getimg_daily_image")
    broker = whole.components["valkey"]

    def sent() -> bool:
        first = whole.rest.task_instances("getimg_daily_image", run_id)
        queued = any(task["state"] == "queued" for task in first)
        return queued and broker.waiting() > 0

    assert whole.rest.poll(sent, 60)
    broker.kill()
    shutil.rmtree(whole.folder.path / "valkey")
    (whole.folder.path / "valkey").mkdir()
    broker.start()
    broker.wait_until_ready()
    assert broker.waiting() == 0
    for worker in whole.workers:
        worker.start()
    wait(whole, "getimg_daily_image", run_id)
    assert len(whole.simulator.ledger) == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a temporary folder that PostgreSQL's user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_cluster_command_leaves_no_process_and_no_file_behind(
    open_folder: Path, tmp_path: Path, number: signal.Signals
):
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = subprocess.Popen(
            [sys.executable, "-m", "devstack.cluster", "--slots", "2"],
            cwd=REPOSITORY,
            env=os.environ | {"TMPDIR": str(open_folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        poll(lambda: "until Ctrl-C." in log.read_text() or command.poll() is not None, 200)
        assert "It stays up until Ctrl-C." in log.read_text()
        for index in range(3):
            assert f"generate_images[{index}]: success on worker-" in log.read_text()
        started = psutil.Process(command.pid).children(recursive=True)
        assert len(started) > 20
        if number == signal.SIGINT:
            # A terminal sends it to the command's whole process group.
            os.killpg(command.pid, number)
            assert command.wait(60) == 0
            assert log.read_text().endswith("\nEnded.\n")
    finally:
        command.kill()
        command.wait()
    assert poll(lambda: not any(map(is_alive, started)), 30)
    assert poll(lambda: not list(open_folder.iterdir()), 30)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def poll(check: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not (is_done := check()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_done
