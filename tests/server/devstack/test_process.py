# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from devstack import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A child, another one in a separate session, and an orphan whose parent was an orphan, too.
FAMILY = """
sleep 1000 & echo $! >> pids
setsid sleep 1000 & echo $! >> pids
(setsid sh -c 'sleep 1000 & echo $! >> pids' &)
echo $$ >> pids
while [ $(wc -l < pids) -lt 4 ]; do sleep 0.01; done
echo ready
wait
"""


def start(tmp_path: Path, script: str, **options: Any) -> GuardedProcess:
    return GuardedProcess(
        "The test",
        ["sh", "-c", script],
        log=tmp_path / "log",
        env=dict(os.environ),
        cwd=tmp_path,
        **options,
    )


def wait_for(check: Callable[[], bool], timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while not (result := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return result


def says(process: GuardedProcess, word: str) -> Callable[[], bool]:
    return lambda: word in process.log.read_text()


def family(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


def any_alive(pids: list[int]) -> bool:
    return any(psutil.pid_exists(pid) for pid in pids)


def test_end_stops_every_descendant_in_any_session(tmp_path: Path) -> None:
    with start(tmp_path, FAMILY) as process:
        process.wait_until(says(process, "ready"), timeout=10)
        pids = family(tmp_path)
        assert len(pids) == 4
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any_alive(pids)
    assert not process.running


def test_process_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    script = "trap '' TERM; echo $$ > pids; echo ready; while :; do sleep 0.1; done"
    with start(tmp_path, script, grace=0.5) as process:
        process.wait_until(says(process, "ready"), timeout=10)
        pids = family(tmp_path)
    assert not any_alive(pids)


def test_kill_sends_no_sigterm(tmp_path: Path) -> None:
    script = f"trap 'echo warned' TERM; (trap 'echo warned' TERM; while :; do sleep 0.05; done) & {FAMILY}"
    process = start(tmp_path, script)
    process.wait_until(says(process, "ready"), timeout=10)
    pids = family(tmp_path) + [descendant.pid for descendant in process.descendants()]
    process.kill()
    assert not any_alive(pids)
    assert not process.running
    assert "warned" not in process.log.read_text()
    process.kill()


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="not Linux")
def test_nothing_is_deleted_however_late_the_guard_learns_that_data_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    process = start(tmp_path, "echo ready; sleep 1000", remove=[data])
    process.wait_until(says(process, "ready"), timeout=10)
    # It gets the CPU only after its input was closed, which is after the SIGTERM that keeps the data.
    processor = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(process.pid, processor)
    os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    busy = f"import os; os.sched_setaffinity(0, {processor})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            process.end(keep=True)
        finally:
            other.kill()
    assert data.exists()


def test_processes_that_a_command_leaves_behind_end_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, "setsid sleep 1000 & echo $! > pids; exit 3")
    assert wait_for(lambda: not process.running)
    assert not any_alive(family(tmp_path))
    process.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_no_process_or_data_remains_when_the_parent_is_killed_or_interrupted(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = f"""
        import os, pathlib, time
        from devstack import GuardedProcess
        folder = pathlib.Path({str(tmp_path)!r})
        process = GuardedProcess("x", ["sh", "-c", {FAMILY!r}], log=folder / "log",
                                 env=dict(os.environ), cwd=folder, remove=[folder / "data"])
        with process:
            time.sleep(1000)
        """
    (tmp_path / "data").mkdir()
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    assert wait_for(lambda: log.exists() and "ready" in log.read_text())
    pids = family(tmp_path)
    parent.send_signal(number)
    parent.wait(20)
    assert wait_for(lambda: not any_alive(pids))
    assert wait_for(lambda: not (tmp_path / "data").exists())
