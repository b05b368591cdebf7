# SPDX-License-Identifier: Apache-2.0
"""Other projects' S3 servers, each in its own process on loopback with an empty store."""

from __future__ import annotations

import json
import secrets
import shutil
import sysconfig
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from devstack.network import LOOPBACK, clean_environment, free_ports
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
READY_SECONDS = 60.0


class StoreServer:
    """
    A server with its data in a temporary directory. Use it as a context manager.

    It has the methods of ``devstack.SeaweedFS`` that tests use: ``client``, ``create_bucket``, ``aws_connection``.
    """

    #: The name of its program, among this environment's scripts or on ``PATH``.
    program: str

    def __init__(self) -> None:
        self.access_key = f"AK{secrets.token_hex(8)}"
        self.secret_key = secrets.token_hex(20)
        self._port = free_ports(1)[0]
        self.endpoint_url = f"http://{LOOPBACK}:{self._port}"

    def arguments(self, data: Path) -> Sequence[str | Path]:
        """Return the program's arguments."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the program's own environment variables."""
        return {}

    def __enter__(self) -> Self:
        home = Path(tempfile.mkdtemp(prefix=f"{self.program}-"))
        (home / "data").mkdir()
        own = Path(sysconfig.get_path("scripts")) / self.program
        self._process = GuardedProcess(
            self.program,
            [own if own.exists() else self.program, *self.arguments(home / "data")],
            log=home / "log",
            env=clean_environment() | {"HOME": str(home)} | self.environment(),
            cwd=home,
            remove=[home],
        )
        try:
            self._process.wait_until(self._responds, timeout=READY_SECONDS)
        except BaseException:
            self._process.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.end()

    def _responds(self) -> bool:
        try:
            # Plain HTTP first: a refused connection costs boto3 seconds of retries.
            httpx.get(self.endpoint_url, trust_env=False)
            self.client().list_buckets()
        except (httpx.HTTPError, BotoCoreError, ClientError):
            return False
        return True

    def client(self) -> S3Client:
        return self._client

    @cached_property
    def _client(self) -> S3Client:
        session = boto3.session.Session(self.access_key, self.secret_key, region_name=REGION)
        config = Config(s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 1})
        client: S3Client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
        return client

    def create_bucket(self, name: str) -> str:
        self.client().create_bucket(Bucket=name)
        return name

    def aws_connection(self) -> str:
        """Return the value for ``AIRFLOW_CONN_AWS_DEFAULT``."""
        extra = {
            "endpoint_url": self.endpoint_url,
            "region_name": REGION,
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        }
        return json.dumps(
            {"conn_type": "aws", "login": self.access_key, "password": self.secret_key, "extra": extra}
        )


class Moto(StoreServer):
    """moto's server. It accepts any credentials."""

    program = "moto_server"

    def arguments(self, data: Path) -> Sequence[str | Path]:
        return ["-H", LOOPBACK, "-p", str(self._port)]


class MiniStack(StoreServer):
    """MiniStack with only S3. It accepts any credentials."""

    program = "ministack"

    def arguments(self, data: Path) -> Sequence[str | Path]:
        return []

    def environment(self) -> dict[str, str]:
        return {"BIND_HOST": LOOPBACK, "GATEWAY_PORT": str(self._port), "SERVICES": "s3"}


class Rclone(StoreServer):
    """``rclone serve s3``, over a folder. It checks signatures."""

    program = "rclone"

    def arguments(self, data: Path) -> Sequence[str | Path]:
        return ["serve", "s3", "--addr", f"{LOOPBACK}:{self._port}", "--config", data.with_name("none"), data]

    def environment(self) -> dict[str, str]:
        return {"RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"'}


class S3rver(StoreServer):
    """s3rver, from npm. Not a dependency: used if it is on ``PATH``."""

    program = "s3rver"

    def __init__(self) -> None:
        super().__init__()
        # The only ones that it accepts.
        self.access_key = self.secret_key = "S3RVER"

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which(cls.program) is not None

    def arguments(self, data: Path) -> Sequence[str | Path]:
        return ["-d", data, "-a", LOOPBACK, "-p", str(self._port), "--no-vhost-buckets"]
