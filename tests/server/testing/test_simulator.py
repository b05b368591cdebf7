# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from airflow_provider_getimg.testing.server import SimulatorError, SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator


def generate(simulator: GetimgSimulator, prompt: str = "a lighthouse", timeout: float = 10) -> httpx.Response:
    return httpx.post(
        f"{simulator.url}/v2/images/generations",
        headers={"Authorization": f"Bearer {simulator.api_key}"},
        json={"model": "seedream-5-lite", "prompt": prompt},
        timeout=timeout,
    )


def test_ledger_is_a_sequence_of_the_requests_and_what_was_billed(getimg_simulator):
    for n in range(3):
        generate(getimg_simulator, f"Picture {n}")
    getimg_simulator.faults.refused(422)
    generate(getimg_simulator, "Picture 3")
    ledger = getimg_simulator.ledger
    assert len(ledger) == 4
    assert ledger.prompts == [f"Picture {n}" for n in range(4)]
    assert ledger.total_cost == 0.12
    assert [entry.prompt for entry in ledger.billed] == ledger.prompts[:3]
    assert (ledger[-1].status, ledger[-1].outcome, ledger[-1].billed) == (422, "refused", 0)
    assert abs((datetime.now(UTC) - ledger[0].received_at).total_seconds()) < 60
    ledger.clear()
    assert list(ledger) == []


def test_ledger_shows_the_request_rate_and_when_a_request_was_rejected(getimg_simulator):
    getimg_simulator.settings(rpm=4, time_scale=20)
    prompts = ["one: 1", "two: 1", "one: 2", "one: 3", "two: 2"]
    for prompt in prompts:
        while (response := generate(getimg_simulator, prompt)).status_code == 429:
            time.sleep(float(response.headers["Retry-After"]))

    ledger = list(getimg_simulator.ledger)
    served = [entry for entry in ledger if entry.status == 200]
    seconds = (served[-1].received_at - served[0].received_at).total_seconds() * 20
    assert 45 < seconds < 120
    assert Counter(entry.status for entry in ledger) == {200: 5, 429: 1}
    assert Counter(entry.prompt.partition(":")[0] for entry in served) == {"one": 3, "two": 2}
    refused = ledger[4]
    assert served[3].received_at <= refused.received_at <= refused.ended_at <= served[4].received_at


def test_ledger_entry_has_no_end_time_while_its_request_is_running(getimg_simulator):
    getimg_simulator.settings(latency=1)
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(generate, getimg_simulator)
        while not getimg_simulator.ledger:
            time.sleep(0.01)
        assert getimg_simulator.ledger[0].ended_at is None
        assert request.result().status_code == 200
    [entry] = getimg_simulator.ledger
    assert entry.ended_at - entry.received_at >= timedelta(seconds=1)


def test_balance_can_be_read_and_set(getimg_simulator):
    assert getimg_simulator.balance == 100
    generate(getimg_simulator)
    assert getimg_simulator.balance == 99.96
    getimg_simulator.balance = 0.03
    assert getimg_simulator.balance == 0.03
    assert generate(getimg_simulator).status_code == 402


FAULTS = {
    "refused": (lambda faults: faults.refused(400, message="Not that.", code="no"), 400, 0),
    "insufficient_balance": (lambda faults: faults.insufficient_balance(), 402, 0),
    "rate_limit": (lambda faults: faults.rate_limit(), 429, 0),
    "server_error": (lambda faults: faults.server_error(503), 503, 0),
    "server_error billed": (lambda faults: faults.server_error(billed=True), 500, 0.04),
    "slow": (lambda faults: faults.slow(0.01), 200, 0.04),
}


@pytest.mark.parametrize(("queue", "status", "cost"), FAULTS.values(), ids=FAULTS.keys())
def test_fault_hits_only_the_next_request(getimg_simulator, queue, status, cost):
    queue(getimg_simulator.faults)
    assert generate(getimg_simulator).status_code == status
    assert getimg_simulator.ledger.total_cost == cost
    assert getimg_simulator.faults.pending == []
    assert generate(getimg_simulator).status_code == 200


def test_fault_on_a_video_leaves_images_alone(getimg_simulator):
    getimg_simulator.faults.insufficient_balance(on="video")
    assert generate(getimg_simulator).status_code == 200
    response = httpx.post(
        f"{getimg_simulator.url}/v2/videos/generations",
        headers={"Authorization": f"Bearer {getimg_simulator.api_key}"},
        json={"model": "reel-sound", "prompt": "a lake"},
    )
    assert response.status_code == 402
    assert getimg_simulator.faults.pending == []


def test_message_and_code_of_a_rejection_can_be_set(getimg_simulator):
    getimg_simulator.faults.refused(400, message="Not that.", code="no")
    error = generate(getimg_simulator).json()["error"]
    assert (error["message"], error["code"]) == ("Not that.", "no")


@pytest.mark.parametrize(("seconds", "header"), [(7, "7"), (1.5, "1.5"), (None, None)])
def test_rate_limit_fault_sends_retry_after_unless_it_is_none(getimg_simulator, seconds, header):
    getimg_simulator.faults.rate_limit(retry_after=seconds)
    assert generate(getimg_simulator).headers.get("Retry-After") == header


@pytest.mark.parametrize(("billed", "cost"), [(True, 0.04), (False, 0)])
@pytest.mark.parametrize("kind", ["dropped", "timeout"])
def test_lost_response_can_be_billed_or_unbilled(getimg_simulator, kind, billed, cost):
    getattr(getimg_simulator.faults, kind)(billed=billed)
    with pytest.raises(httpx.TransportError):
        httpx.post(
            f"{getimg_simulator.url}/v2/images/generations",
            headers={"Authorization": f"Bearer {getimg_simulator.api_key}"},
            json={"model": "seedream-5-lite", "prompt": "a lake"},
            timeout=httpx.Timeout(10, read=0.5),
        )
    assert getimg_simulator.ledger.total_cost == cost


@pytest.mark.parametrize(("queue", "status"), [("expired_url", 410), ("download_error", 500)])
def test_download_fails_the_given_number_of_times_and_then_succeeds(getimg_simulator, queue, status):
    url = generate(getimg_simulator).json()["data"][0]["url"]
    getattr(getimg_simulator.faults, queue)(times=2)
    assert [httpx.get(url).status_code for _ in range(3)] == [status, status, 200]


def test_odd_responses_and_files_are_sent_the_given_number_of_times(getimg_simulator):
    getimg_simulator.faults.odd_response(
        merge={"status": "succeeded", "usage": {"total_cost": float("nan")}},
        data=[{"$file": 0, "mime_type": None}, None],
        headers={"X-Odd": "1"},
        encoding="gzip",
    )
    response = generate(getimg_simulator)
    assert (response.json()["status"], response.headers["x-odd"]) == ("succeeded", "1")
    good, other = response.json()["data"]
    assert (good["mime_type"], other) == (None, None)
    assert getimg_simulator.ledger.total_cost == 0.04
    getimg_simulator.faults.odd_file(bytes="html", status=203, length="chunked", times=2)
    assert [httpx.get(good["url"]).status_code for _ in range(3)] == [203, 203, 200]
    getimg_simulator.faults.odd_file(redirects=2)
    assert len(httpx.get(good["url"], follow_redirects=True).history) == 2


WRONG = {
    "fault": (lambda it: it.faults.add({"on": "image", "kind": "fire"}), "a fault's 'kind' must be one of"),
    "times": (lambda it: it.faults.rate_limit(times=0), "a fault's 'times' must be greater than"),
    "balance": (lambda it: setattr(it, "balance", -1), "the balance must be an amount in USD"),
    "setting": (lambda it: it.settings(colour=1), "there is no setting 'colour'"),
}


@pytest.mark.parametrize(("use", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_invalid_argument_is_rejected_in_one_line(getimg_simulator, use, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        use(getimg_simulator)
    assert "\n" not in str(error.value)


def test_reset_restores_the_initial_state(getimg_simulator):
    generate(getimg_simulator)
    getimg_simulator.balance = 1
    getimg_simulator.settings(preset="account", media_lifetime=0, rpm=1)
    getimg_simulator.faults.rate_limit(times=5)
    getimg_simulator.reset()
    assert (len(getimg_simulator.ledger), getimg_simulator.balance) == (0, 100)
    assert getimg_simulator.faults.pending == []
    assert [generate(getimg_simulator).status_code for _ in range(2)] == [200, 200]
    assert getimg_simulator.settings()["media_lifetime"] == 86400


def test_image_that_a_test_abandoned_is_not_billed_in_the_next_one(getimg_simulator):
    getimg_simulator.settings(latency=2)
    with pytest.raises(httpx.TimeoutException):
        generate(getimg_simulator, timeout=0.2)
    getimg_simulator.reset()
    getimg_simulator.settings(concurrency=1)
    assert generate(getimg_simulator).status_code == 200
    # The other image would have been billed by now.
    time.sleep(2)
    assert (getimg_simulator.ledger.total_cost, getimg_simulator.balance) == (0.04, 99.96)


def test_options_reach_the_simulator_and_survive_a_reset():
    with SimulatorProcess(api_key="sk_mine", media_lifetime=60, preset="account", time_scale=1000) as process:
        simulator = GetimgSimulator(process)
        started = simulator.settings()
        assert (started["media_lifetime"], started["rpm"], started["time_scale"]) == (60, 20, 1000)
        simulator.settings(media_lifetime=0, rpm=0, time_scale=1)
        simulator.reset()
        assert simulator.settings() == started
        assert (simulator.api_key, generate(simulator).status_code) == ("sk_mine", 200)


def test_failed_start_raises_an_error_with_the_output_of_the_process():
    program = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(SimulatorError, match=r"died at start-up \(exit code 1\)\.\nno such luck$"):
        SimulatorProcess(program=program).start()


def test_missing_extra_raises_an_error_with_the_install_command():
    # None in sys.modules makes the import fail, as it does without the extra.
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from airflow_provider_getimg.simulator.__main__ import main; sys.exit(main())"
    )
    with pytest.raises(SimulatorError, match=r"pip install 'airflow-provider-getimg\[simulator\]'"):
        SimulatorProcess(program=[sys.executable, "-c", code]).start()


def test_using_a_simulator_that_has_exited_raises_an_error():
    with SimulatorProcess() as process:
        simulator = GetimgSimulator(process)
        process.end()
        process.end()
        assert not process.running
        with pytest.raises(SimulatorError, match=r"The simulator at 127\.0\.0\.1:\d+ doesn't respond"):
            simulator.ledger.total_cost  # noqa: B018
        with pytest.raises(SimulatorError, match=r"^The simulator has died \(exit code 0\)"):
            simulator.reset()


def test_starting_a_running_simulator_again_raises_an_error():
    with SimulatorProcess() as process:
        pid = process.pid
        with pytest.raises(SimulatorError, match=r"^The simulator is already running at http"):
            process.start()
        assert process.pid == pid
        assert process.running


def test_each_pass_over_the_ledger_sends_one_request(getimg_simulator, monkeypatch):
    for _ in range(3):
        generate(getimg_simulator)
    looks = []
    read = getimg_simulator.ledger.raw
    monkeypatch.setattr(getimg_simulator.ledger, "raw", lambda: looks.append(1) or read())
    assert [entry.status for entry in getimg_simulator.ledger] == [200] * 3
    assert len(looks) == 1
    first, *_, last = list(reversed(getimg_simulator.ledger))
    assert last in getimg_simulator.ledger
    assert first.received_at >= last.received_at
    assert len(looks) == 3


def test_simulator_does_not_outlive_a_killed_parent_process():
    code = (
        "from airflow_provider_getimg.testing.server import SimulatorProcess\n"
        "process = SimulatorProcess().start()\n"
        "print(process.url, process.pid, flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        socket.create_connection(address, timeout=5).close()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while _runs(int(pid)):
        assert time.monotonic() < deadline, "the simulator is an orphan"
        time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie, whose parent has not waited for it yet, has ended.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
