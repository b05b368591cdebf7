# SPDX-License-Identifier: Apache-2.0
"""The record of what a task has paid for, kept in an S3 folder."""

from __future__ import annotations

import logging
import re
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.api.errors import ConnectionConfigError, LedgerError
from airflow_provider_getimg.durable.journal import KEY, Journal
from airflow_provider_getimg.durable.ledger import EntryStore, Ledger
from airflow_provider_getimg.durable.s3_task_state import S3TaskState
from airflow_provider_getimg.durable.task_state import StateConflictError
from airflow_provider_getimg.durable.tries import Try
from airflow_provider_getimg.hooks.state_folder import StateFolder

if TYPE_CHECKING:
    from devstack import SeaweedFS

LOG = logging.getLogger(__name__)
STARTED = datetime(2026, 11, 29, 16, 0, 0, 123456, tzinfo=UTC)
CLEARED = STARTED + timedelta(hours=1)
MADE_AGAIN = STARTED + timedelta(days=1)


class Folder:
    """A state folder, and the tries of one task that use it."""

    def __init__(self, seaweedfs: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = seaweedfs.client()
        self.bucket = bucket
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())
        self.deployment("https://airflow.example")

    def deployment(self, base_url: str) -> None:
        """Act as the deployment with this base URL from now on."""
        self._monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)

    def context(self, started: datetime = STARTED, try_number: int = 1, **ids: Any) -> Any:
        ti = SimpleNamespace(
            **({"dag_id": "a_dag", "run_id": "a+run/1:2", "task_id": "a_task", "map_index": -1} | ids),
            try_number=try_number,
            max_tries=3,
        )
        clears = int(started not in (STARTED, MADE_AGAIN))
        run = SimpleNamespace(start_date=started, run_after=STARTED, clear_number=clears)
        return {"ti": ti, "dag_run": run}

    def state(
        self, started: datetime = STARTED, try_number: int = 1, *, is_resumed: bool = False, **ids: Any
    ) -> S3TaskState:
        folder = StateFolder(self.bucket, "state")
        context = self.context(started, try_number, **ids)
        return S3TaskState(folder, "aws_default", context, is_resumed=is_resumed)

    def keys(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]


@pytest.fixture
def folder(seaweedfs: SeaweedFS, bucket: str, monkeypatch) -> Folder:
    return Folder(seaweedfs, bucket, monkeypatch)


def test_retry_sees_what_earlier_tries_wrote_and_deleted(folder):
    first = folder.state()
    assert first.get("key") is None
    first.set("key", {"a": 1})
    first.set("key", {"a": 2})
    second = folder.state(try_number=2)
    assert second.get("key") == {"a": 2}
    second.delete("key")
    assert folder.state(try_number=3).get("key") is None


def test_object_key_is_built_from_the_task_instance_ids_and_the_run_start(folder):
    state = folder.state()
    state.set("key", 1)
    [key] = folder.keys()
    assert key.startswith("state/a_dag/a~2Brun~2F1~3A2/a_task/-1/20261129T160000.123456Z-")
    assert state.address("key") == f"s3://{folder.bucket}/{key}"


@pytest.mark.parametrize(
    "ids",
    [
        {"dag_id": "other"},
        {"run_id": "other"},
        {"task_id": "other"},
        {"map_index": 0},
        {"run_id": "a~2Brun~2F1~3A2"},
        {"run_id": "a+run", "task_id": "1:2/a_task"},
        {"dag_id": "d" * 250, "run_id": "r+" * 125, "task_id": "t" * 250},
    ],
    ids=str,
)
def test_task_instances_do_not_share_state(folder, ids):
    folder.state().set("key", "mine")
    other = folder.state(**ids)
    assert other.get("key") is None
    other.set("key", "other")
    assert folder.state(try_number=2).get("key") == "mine"
    assert folder.state(try_number=2, **ids).get("key") == "other"


def test_state_survives_a_clear(folder):
    folder.state().set("key", 1)
    cleared = folder.state(CLEARED, try_number=2)
    assert cleared.get("key") == 1
    cleared.set("key", 2)
    assert folder.state(CLEARED, try_number=3).get("key") == 2
    assert folder.state(CLEARED + timedelta(hours=1), try_number=4).get("key") == 2


def test_resumed_first_try_keeps_its_state_when_clearing_another_task_restarts_the_run(folder):
    folder.state().set("key", "submitted")
    # Clearing another task restarts the run.
    resumed = folder.state(CLEARED, is_resumed=True)
    assert resumed.get("key") == "submitted"
    resumed.set("key", "completed")
    assert folder.state(CLEARED, try_number=2).get("key") == "completed"


def test_recreated_run_with_the_same_id_has_its_own_state(folder):
    folder.state().set("key", "old")
    again = folder.state(MADE_AGAIN)
    assert again.get("key") is None
    again.set("key", "new")
    assert folder.state(MADE_AGAIN, try_number=2).get("key") == "new"
    assert folder.state(MADE_AGAIN + timedelta(hours=1), try_number=3).get("key") == "new"


def test_recreated_run_that_wrote_nothing_still_has_no_state_after_a_clear(folder):
    folder.state().set("key", "old")
    assert folder.state(MADE_AGAIN).get("key") is None
    assert folder.state(MADE_AGAIN + timedelta(hours=1), try_number=2).get("key") is None


def test_retry_in_a_recreated_run_ignores_old_state_if_the_first_try_died_immediately(folder):
    folder.state().set("key", "old")
    assert folder.state(MADE_AGAIN, try_number=2).get("key") is None


def test_state_survives_a_clear_by_a_scheduler_with_a_slow_clock(folder):
    folder.state().set("key", 1)
    assert folder.state(STARTED - timedelta(seconds=1), try_number=2).get("key") == 1


def test_two_deployments_that_share_a_folder_keep_separate_state(folder):
    folder.state().set("key", "production")
    folder.deployment("https://staging.example")
    staging = STARTED + timedelta(seconds=1)
    assert folder.state(staging).get("key") is None
    folder.state(staging).set("key", "staging")
    assert folder.state(CLEARED, try_number=2).get("key") == "staging"
    folder.deployment("https://airflow.example/")
    assert folder.state(CLEARED, try_number=2).get("key") == "production"


def test_retry_on_a_worker_with_another_base_url_finds_its_state(folder):
    folder.state().set("key", 1)
    folder.deployment("http://worker-7:8080")
    assert folder.state(try_number=2).get("key") == 1


def test_second_of_two_processes_that_found_no_entry_cannot_create_it(folder):
    first, second = folder.state(), folder.state(try_number=2)
    assert (first.get("key"), second.get("key")) == (None, None)
    first.set("key", "first")
    with pytest.raises(StateConflictError, match="another process has written s3://"):
        second.set("key", "second")
    first.set("key", "still first")
    assert folder.state(try_number=3).get("key") == "still first"


def test_write_repeated_by_botocore_is_not_a_conflict(folder):
    first, repeated = folder.state(), folder.state()
    first.set("key", {"same": "bytes"})
    repeated.set("key", {"same": "bytes"})
    repeated.set("key", "more")
    assert first.get("key") == "more"


def test_second_of_two_ledgers_that_found_no_entry_cannot_record_its_intent(folder):
    ledgers = [
        Ledger(folder.context(try_number=number), "f", LOG, EntryStore(folder.state(try_number=number)))
        for number in (1, 2)
    ]
    assert [ledger.previous() for ledger in ledgers] == [None, None]
    ledgers[0].record_intent()
    with pytest.raises(LedgerError, match=r"The state folder s3://.* another process has written"):
        ledgers[1].record_intent()
    assert folder.state(try_number=3).get("getimg_generation")["try_number"] == 1


def test_ledger_of_a_zombie_still_records_an_unknown_outcome(folder):
    ledger = Ledger(folder.context(), "f", LOG, EntryStore(folder.state()))
    assert ledger.previous() is None
    ledger.record_intent()
    # What the next try would write if it sent the request again.
    later = folder.state(try_number=2)
    assert later.get("getimg_generation")["state"] == "submitted"
    later.set("getimg_generation", {"state": "other"})
    ledger.record_unknown("It took too long.")
    assert folder.state(try_number=3).get("getimg_generation")["failure"] == "It took too long."


def test_failed_video_is_recorded_on_the_second_write_if_its_entry_could_not_be_read(folder, caplog):
    video = {"state": "pending", "video_id": "req-1"}
    folder.state().set("getimg_generation", video)
    ledger = Ledger(folder.context(), "f", LOG, EntryStore(folder.state()))
    broken = EntryStore(S3TaskState(StateFolder("no-such-bucket", "state"), "aws_default", folder.context()))
    store, ledger._store = ledger._store, broken
    ledger.resume("req-1")
    ledger._store = store
    ledger.record_failed("It can't be made.")
    assert "another process has written" in caplog.text
    ledger.record_failed("It can't be made.")
    assert folder.state(try_number=2).get("getimg_generation")["state"] == "failed"


def test_no_entry_is_lost_when_two_journals_write_concurrently(folder):
    with (
        Journal(folder.state(), Try(1, 3), LOG) as zombie,
        Journal(folder.state(try_number=2), Try(1, 3), LOG) as journal,
    ):
        journal.set("mine", 1)
        with pytest.raises(StateConflictError):
            zombie.set("its", 1)
        zombie.set("its", 2)
        journal.set("mine", 3)
    with Journal(folder.state(try_number=3), Try(1, 3), LOG) as read:
        assert (read.get("mine"), read.get("its")) == (3, 2)


def test_error_for_a_malformed_entry_names_the_object_to_delete(folder):
    state = folder.state()
    state.set("getimg_generation", 1)
    [key] = folder.keys()
    folder.client.put_object(Bucket=folder.bucket, Key=key, Body=b"{")
    ledger = Ledger(folder.context(try_number=2), "f", LOG, EntryStore(folder.state(try_number=2)))
    with pytest.raises(LedgerError, match=f"Delete s3://{folder.bucket}/{key} to continue"):
        ledger.previous()
    folder.client.put_object(
        Bucket=folder.bucket, Key=key.replace("getimg_generation", KEY.format(number=0)), Body=b"[]"
    )
    with (
        pytest.raises(LedgerError, match=r"Delete s3://.*getimg_batch_0000\.json to continue"),
        Journal(folder.state(try_number=2), Try(1, 3), LOG),
    ):
        pass


def test_missing_bucket_raises_an_error_instead_of_reading_as_empty(folder):
    bucket = f"no-{uuid.uuid4()}"
    state = S3TaskState(StateFolder(bucket, "state"), "aws_default", folder.context())
    with pytest.raises(LedgerError) as error:
        Ledger(folder.context(), "f", LOG, EntryStore(state)).previous()
    assert re.fullmatch(
        rf"The state folder s3://{bucket}/state could not be read: S3 could not list s3://{bucket}/state/\S+: there is no bucket "
        rf"'{bucket}'\. Nothing was billed\.",
        str(error.value),
    )


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("", None),
        (None, None),
        ("s3://bucket/a/prefix/", StateFolder("bucket", "a/prefix")),
        (" s3://bucket ", StateFolder("bucket", "")),
        ("s3://aws_state@My.Bucket_1/p", StateFolder("My.Bucket_1", "p", "aws_state")),
    ],
)
def test_state_folder_is_parsed(text, folder):
    assert StateFolder.checked(text) == folder


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("bucket/prefix", "got 'bucket/prefix'"),
        ("gs://bucket/prefix", "got 'gs://bucket/prefix'"),
        ("s3:///prefix", "got 's3:///prefix'"),
        (7, "got 7"),
        ("s3://bucket:80/x", "got 's3://bucket:80/x'"),
        ("s3://id:secret@bucket/x", r"prefix\. Nothing"),
        ("s3://bucket/x?key=secret", r"prefix\. Nothing"),
        ("s3://[bucket/x", "got"),
    ],
)
def test_invalid_state_folder_is_rejected_without_showing_secrets(text, got):
    with pytest.raises(
        ConnectionConfigError, match=f"state_folder must be s3://bucket/prefix.*{got}"
    ) as error:
        StateFolder.checked(text)
    assert "secret" not in str(error.value)
