# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

import airflow_provider_getimg

ROOT = Path(airflow_provider_getimg.__file__).parents[1]


def run(*options, code=None):
    start = ["-c", code] if code else ["-m", "airflow_provider_getimg.simulator"]
    return subprocess.run(
        [sys.executable, *start, *options], capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
    )


def test_first_line_is_the_url_of_a_simulator_with_the_given_options(start):
    with start(
        "--balance", "12.5", "--latency", "0.25", "--media-lifetime", "60", "--file-size", "7"
    ) as simulator:
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", simulator.url)
        assert simulator.keyless.get(f"{simulator.url}/_simulator/health").json() == {
            "status": "ok",
            "running": 0,
        }
        assert simulator.balance() == "12.50"
        settings = simulator.http.get("/_simulator/settings").json()
        given = {"latency": 0.25, "media_lifetime": 60, "file_size": 7}
        untouched = {
            "max_latency": 0,
            "download_latency": 0,
            "video_latency": 1,
            "rpm": 0,
            "concurrency": 0,
            "time_scale": 1,
        }
        assert settings == {**given, **untouched}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_simulator_exits_quickly_and_silently_on_a_signal_despite_open_requests(start, how):
    with start() as simulator:
        large = {"model": "atelier-pro", "resolution": "2K"}
        simulator.set(file_size=0)
        drawings = [simulator.url_of(prompt=f"drawing {number}", **large) for number in range(6)]
        simulator.set(file_size=100_000_000)
        url = simulator.url_of()
        simulator.fault("image", "hang")
        with (
            ExitStack() as within,
            simulator.sent("GET", url) as downloading,
            simulator.sent_post(prompt="hangs"),
            socket.create_connection((simulator.http.base_url.host, simulator.http.base_url.port)),
        ):
            assert downloading.recv(1) == b"H"
            simulator.eventually(lambda post: post["outcome"] == "hung")
            simulator.set(latency=60)
            made = within.enter_context(simulator.sent_post(prompt="being made"))
            simulator.eventually(lambda post: post["prompt"] == "being made")
            for drawing in drawings:
                within.enter_context(simulator.sent("GET", drawing))
            began = time.monotonic()
            simulator.process.send_signal(how)
            assert simulator.process.wait(10) == 0
            assert time.monotonic() - began < 3
            assert made.recv(1) == b""


def test_verbose_logs_requests_but_no_credentials(tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_getimg.simulator", "--port", "0", "--verbose"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
        )
    try:
        url = process.stdout.readline().strip()
        response = httpx.post(
            f"{url}/v2/images/generations",
            headers={"Authorization": "Bearer sk_simulator"},
            json={"model": "sketch-mini", "prompt": "x"},
            trust_env=False,
        )
        file_url = response.json()["data"][0]["url"]
        httpx.get(file_url, trust_env=False)
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=10)
    logged = (tmp_path / "log").read_text()
    assert rest == ""
    assert '"POST /v2/images/generations HTTP/1.1" 200' in logged
    assert "GET /v2/downloads/req-" in logged
    assert "sig=" not in logged
    assert "sk_simulator" not in logged


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--latency", "-1"), "latency must be greater than or equal to 0, got '-1'"),
        (("--latency", "nan"), "latency must be a finite number, got 'nan'"),
        (("--latency", "soon"), "latency must be a valid number, got 'soon'"),
        (("--rpm", "1.5"), "rpm must be a valid integer, got '1.5'"),
        (("--time-scale", "0"), "time_scale must be greater than or equal to 1, got '0'"),
        (("--preset", "large"), "preset must be 'account', got 'large'"),
        (
            ("--balance", "much"),
            "argument --balance: the balance must be an amount in USD such as 12.34, got 'much'",
        ),
        (("--port", "65536"), "argument --port: the port must be a number from 0 to 65535, got '65536'"),
        (("--api-key", "a b"), "argument --api-key: the key must be printable ASCII text without spaces"),
        (("--api-key", ""), "argument --api-key: the key must be printable ASCII text without spaces"),
        (("--lat", "1"), "unrecognized arguments: --lat 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_invalid_option_is_rejected_in_one_line(options, sentence):
    ended = run(*options)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"getimg-simulator: {sentence}\n")


def test_port_in_use_is_reported_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        ended.stderr
        == f"getimg-simulator: cannot listen on 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}\n"
    )


def test_unknown_host_is_reported_in_one_line():
    ended = run("--host", "no.such.host.invalid", "--port", "0")
    assert ended.returncode == 1
    assert re.fullmatch(r"getimg-simulator: cannot listen on no\.such\.host\.invalid:0: .+\n", ended.stderr)


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "PIL"])
def test_missing_dependency_is_reported_with_the_extra_to_install(module):
    ended = run(
        code=f"import sys; sys.modules[{module!r}] = None\n"
        "from airflow_provider_getimg.simulator.__main__ import main; sys.exit(main([]))"
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "getimg-simulator needs the extra 'simulator', or for tests 'testing': pip install "
        "'airflow-provider-getimg[simulator]'\n"
    )


def test_simulator_imports_neither_airflow_nor_the_rest_of_the_package():
    ended = run(
        code="import sys; import airflow_provider_getimg.simulator.server\n"
        "names = [n for n in sys.modules if n.startswith(('airflow.', 'airflow_provider_getimg.')) or n == 'airflow']\n"
        "print([n for n in names if not n.startswith('airflow_provider_getimg.simulator')])"
    )
    assert ended.stdout == "[]\n", ended.stderr
