# SPDX-License-Identifier: Apache-2.0
"""Airflow's API app with the gallery, on SQLite and a real S3 server."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.s3.object_options import dag_digest, task_digest
from airflow_provider_getimg.testing.dag_run import DagRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from devstack import SeaweedFS

DAG_ID = "gallery"
RUN_ID = "manual__2026-01-01T00:00:00+00:00"
# Markup, right-to-left text, an emoji outside the Basic Multilingual Plane, and a prompt of the maximum length.
PROMPTS = ["<script>alert(1)</script>\"'><img src=x onerror=alert(1)>", "שלום עולם", "🦊 a fox", "x" * 4096]

# Would run as script, or split a header, if not escaped. Airflow accepts neither in a task's name.
HOSTILE = "\"><script>alert(2)</script>' & %0d%0aX-Split: 1"
LINES = "\r\nX-Split: 2\r\n\r\n<script>alert(3)</script>"
ODD_TASK = "group.task-1_a..b"


def png(colour: str = "red") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1024, 640), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def gallery_bucket(seaweedfs: SeaweedFS) -> str:
    return seaweedfs.create_bucket("gallery")


@pytest.fixture(scope="module")
def put(seaweedfs: SeaweedFS, gallery_bucket: str) -> Callable[..., str]:
    """Return a function that saves an object as this provider does, and returns its URI."""
    client = seaweedfs.client()

    def put(key: str, body: bytes, *, dag_id: str = DAG_ID, **metadata: str) -> str:
        names = {name.replace("_", "-"): value for name, value in metadata.items()}
        if metadata:
            names["getimg-dag"] = dag_digest(dag_id)
        client.put_object(Bucket=gallery_bucket, Key=key, Body=body, Metadata=names)
        return f"s3://{gallery_bucket}/{key}"

    return put


@pytest.fixture(scope="module")
def rows(put) -> list[dict]:
    """A transfer's result for four images, and for objects that don't match their rows."""
    rows = []
    for index, prompt in enumerate(PROMPTS):
        name = f"img_{index}"
        uri = put(f"{name}.png", png(), getimg_generation_id=name, getimg_index="0")
        rows.append(_row(uri, name, prompt))
    for name, body, metadata in (
        ("another", png(), {"getimg_generation_id": "img_0", "getimg_index": "0"}),
        ("another-index", png(), {"getimg_generation_id": "another-index", "getimg_index": "1"}),
        ("foreign", png(), {}),
        ("page", b"<html><script>alert(1)</script>", {"getimg_generation_id": "page", "getimg_index": "0"}),
        (
            "svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            {"getimg_generation_id": "svg", "getimg_index": "0"},
        ),
    ):
        rows.append(_row(put(name, body, **metadata), name, name))
    rows.append(_row("s3://nowhere/at-all.png", "missing", "missing"))
    rows.append(_row("file:///etc/passwd", "local", "local"))
    others = {"getimg_generation_id": "another-dag", "getimg_index": "0", "dag_id": "another"}
    rows.append(_row(put("another-dag", png(), **others), "another-dag", "another-dag"))
    return rows


def _row(uri: str, generation_id: str, prompt: str) -> dict:
    return {
        "uri": uri,
        "generation_id": generation_id,
        "index": 0,
        "model": "seedream-5-lite",
        "bytes": 12345,
        "width": 1024,
        "height": 640,
        "cost": 0.04,
        "aws_conn_id": "aws_gallery",
        "request": {"model": "seedream-5-lite", "prompt": prompt, "labels": {"sku": "<b>9</b>"}},
    }


@pytest.fixture(scope="module")
def manifest(put) -> bytes:
    """The manifest of a batch: 30 saved images and a failed row."""
    lines = []
    for index in range(30):
        name = f"batch_{index}"
        uri = put(f"batch/{name}.png", png("blue"), getimg_generation_id=name, getimg_index="0")
        request = {"model": "other-model", "prompt": f"picture {index} of a batch"}
        lines.append(
            {"row": index, "outcome": "saved", "request": request, "generation_id": name, "uri": uri}
        )
    lines.append({"row": 30, "outcome": "failed", "request": {}, "generation_id": None, "error": "no"})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.fixture(scope="session")
def clip() -> bytes:
    from airflow_provider_getimg.simulator.clips import Clip

    return Clip("a fox", 64, 36, 1, sound=False).encode()


@pytest.fixture(scope="module")
def videos(put, clip: bytes) -> list[dict]:
    """A transfer's result for a video, for one longer than a single response, and for an object that is not a video."""
    rows = []
    for name, body in (
        ("video", clip),
        ("long", clip + bytes(5 * 1024 * 1024)),
        ("video-page", b"<html><script>alert(1)</script>"),
    ):
        uri = put(f"{name}.mp4", body, getimg_generation_id=name, getimg_index="0")
        rows.append(_row(uri, name, "A fox runs") | {"mime_type": "video/mp4"})
    return rows


@pytest.fixture(scope="module")
def hostile(put) -> dict:
    """A transfer's row for an image whose key, model, prompt and labels hold script and header breaks."""
    uri = put(f"{HOSTILE}.png", png(), getimg_generation_id="hostile", getimg_index="0")
    request = {"prompt": HOSTILE + LINES, "labels": {HOSTILE: HOSTILE + LINES}}
    return _row(uri, "hostile", "") | {"model": HOSTILE, "request": request}


@pytest.fixture(scope="module")
def airflow_app(
    seaweedfs: SeaweedFS, rows: list[dict], manifest: bytes, videos: list[dict], hostile: dict, put
) -> Iterator[FastAPI]:
    """Airflow's API server, with one recorded run."""
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from airflow.sdk import DAG, get_current_context, task

    from airflow_provider_getimg.testing.database import create_database
    from tests.server.plugin.users import PerDagAuthManager

    create_database()
    line = json.dumps({"uri": rows[0]["uri"], "generation_id": "img_0"}).encode()
    unmarked = {"manifest": put("not-a-manifest.jsonl", line), "aws_conn_id": "aws_gallery"}
    with DAG(DAG_ID, schedule=None) as dag:

        def record(name: str, value: object) -> None:
            @task(task_id=name)
            def push() -> object:
                get_current_context()["ti"].xcom_push(key="getimg_images", value=1)
                return value

            push()

        @task(task_id="batch")
        def batch() -> dict:
            ti = get_current_context()["ti"]
            ti.xcom_push(key="getimg_images", value=30)
            digest = task_digest(ti.dag_id, ti.run_id, ti.task_id, -1)
            uri = put("batch/manifest.jsonl", manifest, getimg_manifest=digest)
            return {"manifest": uri, "aws_conn_id": "aws_gallery"}

        @task
        def another_s_manifest(summary: dict) -> dict:
            """Return another task's manifest, as an edited XCom would."""
            get_current_context()["ti"].xcom_push(key="getimg_images", value=1)
            return summary

        record("transfer", rows)
        record("videos", videos)
        another_s_manifest(batch())
        record("unmarked_manifest", unmarked)
        odd = {"cost": -5, "bytes": 10**18, "width": -1, "height": True}
        record("odd_numbers", [rows[0] | odd])
        record(ODD_TASK, [hostile])
        record("nothing", "no record of ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_GALLERY", seaweedfs.aws_connection())
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"{PerDagAuthManager.__module__}.PerDagAuthManager")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of the tests, long enough for HS512 " * 2)
        from datetime import UTC, datetime

        DagRunner(keep_runs=True)(dag, logical_date=datetime(2026, 1, 1, tzinfo=UTC))
        yield create_app(apps="core")
        purge_cached_app()


@pytest.fixture
def plugin_state(airflow_app: FastAPI) -> Any:
    """Return the state that all requests to the plugin share."""
    mounted = next(route.app for route in airflow_app.routes if getattr(route, "path", "") == "/getimg")
    return mounted.state


@pytest.fixture(scope="module")
def client_of(airflow_app: FastAPI) -> Callable[..., TestClient]:
    """Return a function that makes a client with a role of the simple auth manager; without a login if it is None."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    def client_of(role: str | None, username: str = "somebody", teams: list[str] | None = None) -> TestClient:
        client = TestClient(airflow_app, base_url="http://testserver", raise_server_exceptions=False)
        if role is not None:
            # In Airflow 3.1, users have no teams.
            of_teams = {"teams": teams} if teams else {}
            user = SimpleAuthManagerUser(username=username, role=role or None, **of_teams)
            client.cookies.set("_token", get_auth_manager().generate_jwt(user))
        return client

    return client_of


@pytest.fixture(scope="module")
def viewer(client_of) -> TestClient:
    return client_of("viewer")


@pytest.fixture(scope="module")
def run_id(viewer: TestClient) -> str:
    return viewer.get(f"/api/v2/dags/{DAG_ID}/dagRuns").json()["dag_runs"][0]["dag_run_id"]
