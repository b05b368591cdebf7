# SPDX-License-Identifier: Apache-2.0
"""Runs the example DAGs with the provider from another environment, against the simulator and a real S3 server."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

from PIL import Image

from airflow_provider_getimg.testing.server import SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator
from devstack.network import clean_environment
from devstack.process import StackError, tail
from devstack.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mypy_boto3_s3.client import S3Client

BUCKET = "getimg-examples"
STATE_BUCKET = "getimg-state"
# Named by the parameter `photo` of getimg_reference_images.
PHOTO = "getimg/reference/product.png"
# The table of getimg_catalogue_from_sql.
PRODUCTS = {"A-17": "a teapot", "B-02": "a kettle", "C-33": "a milk jug"}
COMMAND_SECONDS = 240.0
MAKE_NO_IMAGE = {"getimg_asset_consumer", "getimg_check_balance"}
# Tasks that wait for a person. No one responds here, so they are marked as success, and nothing is published.
WAIT_FOR_A_PERSON = {"getimg_review_before_publish": "review"}


def run_example_dags(
    venv: Path, home: Path, dags: Path, *, state_folder: bool = False
) -> Iterator[tuple[str, int]]:
    """
    Run each example DAG once with ``airflow dags test``, and yield its name and the number of images it saved.

    The commands run in ``home``, where no package of this repository can be imported.

    :param venv: The environment with the provider and its extra ``simulator``.
    :param home: A new folder for Airflow's database and logs.
    :param dags: The folder with the example DAGs.
    :param state_folder: Keep the state of paid requests in S3, as Airflow 3.1 and 3.2 require.
    :raises devstack.StackError: A DAG failed, or did not save exactly the images that were billed.
    """
    home.mkdir(parents=True)
    program = [str(venv / "bin" / "getimg-simulator")]
    with (
        SeaweedFS(log=home / "seaweedfs.log") as seaweedfs,
        SimulatorProcess(program=program, log=home / "simulator.log") as process,
    ):
        simulator = GetimgSimulator(process)
        seaweedfs.create_bucket(BUCKET)
        client = seaweedfs.client()
        put_photo(client, BUCKET)
        extra = (
            {"state_folder": f"s3://{seaweedfs.create_bucket(STATE_BUCKET)}/state"} if state_folder else {}
        )
        env = _environment(venv, home, dags) | {
            "AIRFLOW_CONN_GETIMG_DEFAULT": process.connection(**extra),
            "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
            "AIRFLOW_CONN_GETIMG_CATALOGUE": make_catalogue(home / "catalogue.db"),
            "AIRFLOW_VAR_GETIMG_BUCKET": BUCKET,
        }
        _airflow(env, home, "db", "migrate")
        _airflow(env, home, "pools", "set", "getimg", "4", "for the example DAGs")
        for dag in sorted(path.stem for path in dags.glob("*.py")):
            simulator.ledger.clear()
            before = _keys(client)
            waiting = WAIT_FOR_A_PERSON.get(dag)
            options = ["--mark-success-pattern", waiting] if waiting else []
            _airflow(env, home, "dags", "test", dag, *options)
            saved = len(_keys(client) - before)
            paid = len(simulator.ledger.billed)
            if saved != paid:
                raise StackError(f"{dag} saved {saved} images, and paid for {paid}.")
            if not saved and dag not in MAKE_NO_IMAGE:
                raise StackError(f"{dag} made no image.")
            yield dag, saved


def put_photo(client: S3Client, bucket: str) -> None:
    """Save the photo that ``getimg_reference_images`` reads."""
    photo = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(photo, "PNG")
    client.put_object(Bucket=bucket, Key=PHOTO, Body=photo.getvalue())


def make_catalogue(path: Path) -> str:
    """Create the database that ``getimg_catalogue_from_sql`` reads, and return the connection to it."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE products (sku VARCHAR(100) PRIMARY KEY, name VARCHAR(500) NOT NULL, picture VARCHAR(2000))"
        )
        database.executemany("INSERT INTO products (sku, name) VALUES (?, ?)", PRODUCTS.items())
        database.commit()
    return json.dumps({"conn_type": "sqlite", "host": str(path)})


def _environment(venv: Path, home: Path, dags: Path) -> dict[str, str]:
    env = clean_environment()
    env.pop("PYTHONPATH", None)
    return env | {
        "PATH": os.pathsep.join([str(venv / "bin"), env.get("PATH", os.defpath)]),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _airflow(env: dict[str, str], home: Path, *arguments: str) -> None:
    log = home / f"{'-'.join(arguments[:3])}.log"
    with log.open("w") as output:
        try:
            code = subprocess.run(
                [f"{env['PATH'].partition(os.pathsep)[0]}/airflow", *arguments],
                cwd=home,
                env=env,
                stdout=output,
                stderr=output,
                timeout=COMMAND_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise StackError(f"airflow {' '.join(arguments)} took too long:", tail(log)) from None
    if code != 0:
        raise StackError(f"airflow {' '.join(arguments)} failed (see {log}):", tail(log))


def _keys(client: S3Client) -> set[str]:
    listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    # A batch's manifest is not an image.
    return {entry["Key"] for entry in listed if not entry["Key"].endswith(".jsonl")}
