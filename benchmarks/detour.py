# SPDX-License-Identifier: Apache-2.0
"""Servers that seem far away: files and S3 over HTTPS, each behind a relay with a delay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.testbed import SourceFile
from devstack.network import clean_environment, free_ports
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.testbed import Testbed

MIB = 2**20


class Detour:
    """
    The route to files and to a testbed's S3 over HTTPS. Use it as a context manager.

    :param testbed: Its S3 is put behind a relay.
    :param delay: Seconds that a byte takes to or from the file server.
    :param s3_delay: The same to or from S3.
    """

    def __init__(self, testbed: Testbed, delay: float, s3_delay: float) -> None:
        self._testbed = testbed
        self._delay = delay
        self._s3_delay = s3_delay
        self._folder = testbed.folder / f"detour-{uuid.uuid4().hex[:8]}"
        self._count = self._folder / "handshakes"
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            (self._folder / "files").mkdir(parents=True)
            certificate = self._testbed.certificate
            (files,) = free_ports(1)
            server = GuardedProcess(
                "rclone",
                [
                    *(
                        Path(sysconfig.get_path("scripts")) / "rclone",
                        "serve",
                        "http",
                        self._folder / "files",
                    ),
                    *("--addr", f"127.0.0.1:{files}", "--read-only", "--config", "/dev/null"),
                    *("--cert", certificate, "--key", certificate),
                ],
                log=self._folder / "rclone.log",
                env=clean_environment(),
            )
            ends.callback(server.end)
            self._port = ends.enter_context(self._relay(files, self._count, self._delay))
            s3 = int(self._testbed.s3.https_url.rpartition(":")[2])
            if self._s3_delay:
                s3 = ends.enter_context(self._relay(s3, self._folder / "others", self._s3_delay))
            self.s3_endpoint_url = f"https://127.0.0.1:{s3}"
            self._testbed.detour = self
            ends.callback(setattr, self._testbed, "detour", None)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def environment(self) -> dict[str, str]:
        """Return the additional environment variables that a process needs to reach them."""
        s3 = self._testbed.s3
        getimg = json.loads(self._testbed.simulator.process.connection())
        getimg["extra"] = {"allowed_networks": "127.0.0.0/8"}
        trusted = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "RCLONE_CA_CERT")
        return dict.fromkeys(trusted, str(self._testbed.certificate)) | {
            "AIRFLOW_CONN_AWS_DEFAULT": s3.aws_connection().replace(s3.endpoint_url, self.s3_endpoint_url),
            "AIRFLOW_CONN_GETIMG_DEFAULT": json.dumps(getimg),
        }

    def make_files(self, count: int, size: int) -> list[SourceFile]:
        """Create distinct files, and return them as the API lists them."""
        (picture,) = self._testbed.make_files(1, size)
        files = []
        for number in range(count):
            # Within the padding after the picture.
            content = bytearray(self._testbed.content(picture))
            content[-16:] = uuid.uuid4().bytes
            name = f"{size}-{number}.jpg"
            (self._folder / "files" / name).write_bytes(content)
            generation = json.loads(json.dumps(picture.generation)) | {"id": f"req-{size}-{number}"}
            generation["data"][0]["url"] = f"https://127.0.0.1:{self._port}/{name}?signature=none"
            files.append(SourceFile(generation, size, hashlib.sha256(content).hexdigest()))
        return files

    def handshakes(self) -> int:
        """Return how many connections to the file server were made since the last call."""
        made = self._count.stat().st_size if self._count.exists() else 0
        self._count.unlink(missing_ok=True)
        return made

    @contextlib.contextmanager
    def _relay(self, port: int, count: Path, delay: float) -> Iterator[int]:
        """Run a relay, and yield its port."""
        command = [sys.executable, "-m", "benchmarks.relay", str(port), str(count), "--delay", str(delay)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()
            process.communicate()
