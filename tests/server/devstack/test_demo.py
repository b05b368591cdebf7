# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it. Each test takes half a minute, so they are ``long``. ``make demo`` itself
tests the usual case.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from devstack import SeaweedFS, StackError
from devstack.demo import REPOSITORY, Demo

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_getimg.testing import GetimgSimulator

pytestmark = pytest.mark.long


def demo(tmp_path: Path, simulator: GetimgSimulator, **changes: str) -> tuple[Demo, Path]:
    """Return a demo that uses the simulator as the real API, and the path of its output."""
    output = tmp_path / "output"
    console = Console(file=output.open("w"), width=80)
    settings = {"api_key": simulator.api_key, "api_url": simulator.url} | changes
    return Demo(console, folder=tmp_path / ".demo", **settings), output


def use_as_own_bucket(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweedfs.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def test_run_with_own_key_and_bucket_is_billed_once_and_leaks_no_key(
    tmp_path: Path,
    simulator: GetimgSimulator,
    seaweedfs: SeaweedFS,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_as_own_bucket(seaweedfs, monkeypatch)
    run, output = demo(tmp_path, simulator, bucket=bucket)
    run.run()
    assert len(simulator.ledger) == 1
    text = output.read_text()
    assert re.search(r"one image of \S+ costs 0\.\d+ USD", text)
    (key,) = re.findall(rf"^s3://{bucket}/(\S+)  \d+ bytes  \d+x\d+ pixels  \$0\.\d+$", text, re.M)
    saved = seaweedfs.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    assert [file.read_bytes() for file in (run.folder / "images").iterdir()] == [saved]
    for file in [output, *run.folder.rglob("*.log")]:
        assert simulator.api_key not in file.read_text(), file


def test_failed_run_shows_the_last_log_lines_of_its_task(tmp_path: Path, simulator: GetimgSimulator) -> None:
    simulator.balance = "0.00"
    run, _ = demo(tmp_path, simulator)
    with pytest.raises(StackError, match=r"(?s)getimg_daily_image failed.*generate_image.*402"):
        run.run()


def test_invalid_key_stops_the_demo_before_airflow_starts(tmp_path: Path, simulator: GetimgSimulator) -> None:
    run, _ = demo(tmp_path, simulator, api_key="sk_not_the_right_one")
    with pytest.raises(StackError, match="401"):
        run.run()
    assert not (run.folder / "airflow").exists()


def test_ctrl_c_during_a_run_ends_every_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "devstack.demo", "--folder", str(tmp_path / ".demo")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "generate_image: running" in line:
            break
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 10
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) == 130
    assert [child for child in started if child.is_running()] == []
