# SPDX-License-Identifier: Apache-2.0
"""Runs the example DAG ``getimg_daily_image`` for real, and shows the images that it saved.

``python -m devstack.demo [--keep] [--folder FOLDER]``, or ``make demo`` and ``make ui``. It reads two
environment variables:

``GETIMG_API_KEY``
    Use the real API, which bills the image. Without it, the demo uses the simulator.
``DEMO_S3_BUCKET``
    Save to this bucket with your own AWS credentials. Without it, the demo starts SeaweedFS.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from airflow_provider_getimg.api.client import GetimgClient
from airflow_provider_getimg.api.errors import GetimgError
from airflow_provider_getimg.api.pricing import image_price
from airflow_provider_getimg.testing.server import SimulatorError, SimulatorProcess
from devstack import Airflow, SeaweedFS, StackError
from devstack.example_dags import make_catalogue, put_photo
from devstack.process import tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from mypy_boto3_s3.client import S3Client

REPOSITORY = Path(__file__).parents[1]
DAG_ID = "getimg_daily_image"
GENERATE, SAVE = "generate_image", "save_to_s3"
# They give the pages something to show: the gallery, the spend, a table, and a review that waits for a person.
SHOWN_DAGS = (
    "getimg_nightly_batch",
    "getimg_catalogue_from_sql",
    "getimg_product_video",
    "getimg_review_before_publish",
)
LOCAL_BUCKET = "getimg-demo"
REAL_API = "https://api.getimg.ai"
# Its presence shows that the demo may empty the folder; a lock on it keeps other runs out.
MARKER = ".airflow-provider-getimg-demo"
# Copies of the images, kept between runs: those from the real API were paid for.
IMAGES = "images"
# Half a minute on two idle cores, several minutes on a busy machine.
START_SECONDS = 600.0
REPORT_SECONDS = 30.0
RUN_SECONDS = 600.0
# Not Airflow's setting `use_job_schedule`, which would also turn off asset schedules.
NO_CLOCK = """\
from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable
from airflow.sdk.definitions.timetables.simple import NullTimetable
def dag_policy(dag):
    if not isinstance(dag.timetable, AssetTriggeredTimetable):
        dag.timetable = NullTimetable()
"""
SHOWN_STATES = {"running", "success", "failed", "up_for_retry", "upstream_failed", "skipped"}


@dataclass
class Demo:
    """One run of the demo.

    :param folder: The demo's own folder; emptied first, except for the images.
    :param dags: The folder with the example DAGs.
    :param api_key: Key of the real API, or None for the simulator.
    :param bucket: The user's bucket, or None for SeaweedFS.
    :param keep: Leave Airflow running until Ctrl-C.
    :param api_url: URL of the real API.
    """

    console: Console
    folder: Path = REPOSITORY / ".demo"
    dags: Path = REPOSITORY / "dags"
    api_key: str | None = None
    bucket: str | None = None
    keep: bool = False
    api_url: str = REAL_API

    def run(self) -> None:
        """Start everything, run the DAG, show its files, and shut everything down.

        :raises devstack.StackError: A server did not start, or the run failed.
        """
        started = time.monotonic()
        with emptied(self.folder):
            with contextlib.ExitStack() as servers:
                try:
                    self._run_on(servers)
                finally:
                    self._say("Ending what was started: a few seconds")
            self._say(f"Done after {time.monotonic() - started:.0f} s.")

    def _run_on(self, servers: contextlib.ExitStack) -> None:
        with self._step("Getting ready") as say:
            getimg = self._getimg(servers, say)
            aws, client, bucket = self._s3(servers, say)
        with self._step("Starting Airflow: about 20 seconds on two idle cores") as say:
            airflow = self._airflow(getimg, aws, bucket)
            servers.callback(airflow.end)
            self._start(airflow, say)
            airflow.create_pool("getimg", 4, include_deferred=True)
            say(f"Airflow {airflow.url}")
        with self._step(f"Running the DAG {DAG_ID}") as say:
            run_id = airflow.run_dag(
                DAG_ID,
                timeout=RUN_SECONDS,
                on_change=lambda task, state: say(f"{task}: {state}") if state in SHOWN_STATES else None,
            )
        self._show_files(airflow, run_id, client)
        if self.keep:
            # With a real key or bucket, it is up to the user to start more DAGs.
            if self.api_key is None and self.bucket is None:
                self._fill(airflow)
            self._say(
                f"Airflow stays up at {airflow.url} (no login needed) until Ctrl-C.\n"
                "The connections getimg_default, aws_default and getimg_catalogue, and the Variable getimg_bucket, come from the "
                "environment: the pages under Admin don't list them.\n"
                "A DAG runs when you trigger it, or when an asset does; schedules by time are off."
            )
            self._watch(airflow)

    def _getimg(self, servers: contextlib.ExitStack, say: Any) -> str:
        """Start the simulator, or print what the real API costs; return the connection."""
        if self.api_key is None:
            simulator = servers.enter_context(SimulatorProcess(log=self._log("simulator"), latency=1.0))
            say(f"Simulator of getimg.ai {simulator.url}: nothing is billed")
            return simulator.connection()
        model, price = self._price(self.api_key)
        say(f"The real API {self.api_url} with your GETIMG_API_KEY")
        say(f"This run is billed: one image of {model} costs {price} USD")
        connection = {"conn_type": "getimg", "password": self.api_key}
        if self.api_url != REAL_API:
            connection["host"] = self.api_url
        return json.dumps(connection)

    def _price(self, api_key: str) -> tuple[str, Decimal]:
        """Return the DAG's model and the price of its image; asking the API is free."""
        [name] = re.findall(r'model="(.+?)"', (self.dags / f"{DAG_ID}.py").read_text())
        try:
            with GetimgClient(api_key, base_url=self.api_url) as client:
                price = image_price(client.get_model(name), None)
        except GetimgError as error:
            raise StackError(str(error)) from None
        if price is None:
            raise StackError(f"{self.api_url} has no price for {name}. No image was requested.")
        return name, price

    def _s3(self, servers: contextlib.ExitStack, say: Any) -> tuple[str, S3Client, str]:
        """Start SeaweedFS, or check the user's bucket; return connection, client and bucket."""
        if self.bucket is None:
            seaweedfs = servers.enter_context(SeaweedFS(log=self._log("seaweedfs")))
            say(f"SeaweedFS, an S3 server {seaweedfs.endpoint_url}")
            bucket = seaweedfs.create_bucket(LOCAL_BUCKET)
            put_photo(seaweedfs.client(), bucket)
            return seaweedfs.aws_connection(), seaweedfs.client(), bucket
        try:
            client: S3Client = boto3.client("s3")
            client.head_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            raise StackError(f"Your credentials don't open the bucket {self.bucket}: {error}") from None
        say(f"Your bucket s3://{self.bucket} with your own AWS credentials")
        return json.dumps({"conn_type": "aws"}), client, self.bucket

    def _airflow(self, getimg: str, aws: str, bucket: str) -> Airflow:
        # Unpausing a DAG must not start, and pay for, a run that was not requested.
        config = self.folder / "airflow" / "config"
        config.mkdir(parents=True)
        (config / "airflow_local_settings.py").write_text(NO_CLOCK)
        return Airflow(
            self.folder / "airflow",
            [self.dags],
            env={
                "AIRFLOW_CONN_GETIMG_DEFAULT": getimg,
                "AIRFLOW_CONN_AWS_DEFAULT": aws,
                "AIRFLOW_CONN_GETIMG_CATALOGUE": make_catalogue(self.folder / "catalogue.db"),
                "AIRFLOW_VAR_GETIMG_BUCKET": bucket,
            },
            keep_aws=self.bucket is not None,
            log=self._log("airflow"),
        )

    def _start(self, airflow: Airflow, say: Any) -> None:
        """Start Airflow and wait for it; on a slow machine, say what is still missing."""
        next_report = time.monotonic() + REPORT_SECONDS

        def ready() -> bool:
            nonlocal next_report
            missing = airflow.without_heartbeat()
            if missing and time.monotonic() > next_report:
                # Until the API server responds, nothing is known about the others.
                names = ["api-server"] if "postgres" in missing else sorted(missing)
                say(f"still waiting for {', '.join(names)}")
                next_report = time.monotonic() + REPORT_SECONDS
            return not missing

        process = airflow.begin().process
        assert process is not None
        process.wait_until(ready, timeout=START_SECONDS)
        airflow.log_in()

    def _show_files(self, airflow: Airflow, run_id: str, client: S3Client) -> None:
        """Print one line per file, and save a copy of each."""
        usage = airflow.xcom(DAG_ID, run_id, GENERATE)["usage"]
        rows: list[dict[str, Any]] = airflow.xcom(DAG_ID, run_id, SAVE)
        images = self.folder / IMAGES
        images.mkdir(exist_ok=True)
        self._say("")
        for row in rows:
            key = Path(row["key"])
            copy = images / f"{key.stem}-{row['generation_id']}{key.suffix}"
            client.download_file(row["bucket"], row["key"], str(copy))
            if hashlib.sha256(copy.read_bytes()).hexdigest() != row["sha256"]:
                raise StackError(f"{row['uri']} does not hold what the task wrote there.")
            pixels = f"{row['width'] or '?'}x{row['height'] or '?'}"
            cost = f"${usage['total_cost'] / len(rows):.4f}"
            self._say(f"{row['uri']}  {row['bytes']} bytes  {pixels} pixels  {cost}")
        self._say(f"\nCopies to look at, beside those of earlier runs: {images}")

    def _fill(self, airflow: Airflow) -> None:
        """Start the DAGs that give the pages something to show, without waiting for them."""
        for dag_id in SHOWN_DAGS:
            airflow.wait_for_dag(dag_id)
            airflow.unpause(dag_id)
            airflow.trigger(dag_id)
        self._say(
            f"The DAGs {', '.join(SHOWN_DAGS)} are running. In a minute or two look at "
            f"{airflow.url}/getimg/images/, {airflow.url}/getimg/spend/, and the images that wait for a person's yes "
            f"at {airflow.url}/required_actions."
        )

    def _watch(self, airflow: Airflow) -> None:
        """Block until Ctrl-C, or until Airflow dies."""
        assert airflow.process is not None
        # Ctrl-C is the expected way to end this, not a failure.
        with contextlib.suppress(KeyboardInterrupt):
            airflow.process.wait()
            raise StackError("Airflow has ended.", tail(airflow.log))

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _say(self, text: str) -> None:
        # No wrapping: a URI broken across two lines can't be copied.
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    @contextlib.contextmanager
    def _step(self, title: str) -> Iterator[Any]:
        """Show a spinner, and yield a function that prints a line with the seconds since the step began."""
        started = time.monotonic()

        def say(text: str) -> None:
            self._say(f"{time.monotonic() - started:5.1f} s  {text}")

        self._say(title)
        with self.console.status(f"{title} …"):
            yield say


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """Empty the demo's own folder, except for the images, and lock out other runs meanwhile.

    :raises devstack.StackError: Another run uses the folder, or the demo did not create it.
    """
    marker = folder / MARKER
    if folder.is_symlink() or (folder.exists() and not marker.is_file() and any(folder.iterdir())):
        raise StackError(f"{folder} was not made by the demo. Move it away.")
    folder.mkdir(exist_ok=True)
    with marker.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"Another demo is running in {folder}. End it first (Ctrl-C).") from None
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                if entry.name != IMAGES:
                    shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        yield


def main() -> int:
    """Run the command line in the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the example DAG for real.")
    parser.add_argument("--keep", action="store_true", help="leave Airflow up until Ctrl-C")
    parser.add_argument("--folder", type=Path, default=Demo.folder, help="default: .demo")
    arguments = parser.parse_args()
    # SIGTERM acts like Ctrl-C, and also ends everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    demo = Demo(
        console,
        folder=arguments.folder.absolute(),
        # Removed from the environment: child processes get it only through the Airflow connection.
        api_key=os.environ.pop("GETIMG_API_KEY", "").strip() or None,
        bucket=os.environ.get("DEMO_S3_BUCKET", "").strip() or None,
        keep=arguments.keep,
    )
    try:
        demo.run()
    except (SimulatorError, StackError) as error:
        console.print(f"\n{error}", soft_wrap=True, markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nEnded.", highlight=False)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
