# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import LedgerError
from airflow_provider_getimg.durable.journal import KEY, SEGMENT_BYTES, Journal, saved_key
from airflow_provider_getimg.durable.task_state import StateStore
from airflow_provider_getimg.durable.tries import Try

LOG = SimpleNamespace(info=lambda *_: None)


class MemoryStore:
    """A state store whose writes can be made to wait or fail."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.writes = 0
        self.gate: threading.Event | None = None
        self.is_writing = threading.Event()
        self.fails = 0
        self.loses_response_to: str | None = None

    def get(self, key: str) -> Any:
        return json.loads(self.values[key]) if key in self.values else None

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.is_writing.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the API server is away")
        self.writes += 1
        self.values[key] = json.dumps(value)
        if key == self.loses_response_to:
            self.loses_response_to = None
            raise ConnectionError("the response was lost")


def reread(store: MemoryStore, epoch: int = 3) -> Journal:
    journal = Journal(StateStore(store), Try(1, epoch), LOG)
    with journal:
        return journal


def test_next_try_reads_the_last_value_of_each_key():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 1})
        journal.set("b", {"n": 2})
        journal.set("a", {"n": 3})
    journal = reread(store)
    assert [journal.get(key) for key in "abc"] == [{"n": 3}, {"n": 2}, None]


def test_write_is_durable_once_it_returns():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 1})
        # What remains if the process is killed here.
        assert reread(store).get("a") == {"n": 1}


def test_writing_none_removes_the_entry():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 1})
        journal.set("a", None)
    assert reread(store).get("a") is None


def test_waiting_entries_are_committed_in_one_write():
    store = MemoryStore()
    store.gate = threading.Event()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        first = journal.write_later("first", {"n": 0})
        assert store.is_writing.wait(60)
        # All of these wait: the write in progress doesn't include them.
        waiting = [journal.write_later(f"row {n}", {"n": n}) for n in range(50)]
        store.gate.set()
        for write in (first, *waiting):
            write.result(60)
        assert store.writes == 2
    assert all(reread(store).get(f"row {n}") == {"n": n} for n in range(50))


def test_full_segment_is_closed_and_a_new_one_is_started():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        for n in range(100):
            journal.set(f"row {n}", {"text": "x" * 1000, "n": n})
    assert len(store.values) >= 100_000 // SEGMENT_BYTES
    assert all(len(value) <= SEGMENT_BYTES + 2000 for value in store.values.values())
    again = reread(store)
    assert all(again.get(f"row {n}")["n"] == n for n in range(100))


def test_next_try_does_not_change_earlier_segments():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 1})
    before = dict(store.values)
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 2})
    assert {key: store.values[key] for key in before} == before
    assert reread(store).get("a") == {"n": 2}


def test_entries_from_before_a_clear_are_ignored_but_stay_stored():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        for n in range(60):
            journal.set(f"row {n}", {"text": "x" * 1000})
    before = dict(store.values)
    with Journal(StateStore(store), Try(1, 7), LOG) as journal:
        assert journal.get("row 1") is None
        journal.set("new", {"n": 1})
    again = reread(store, 7)
    assert again.get("new") == {"n": 1}
    assert again.get("row 59") is None
    # A later Clear needs them, once the bucket is fixed.
    assert {key: store.values[key] for key in before} == before


PAID = {"state": "completed", "response": {"id": "req-1"}}
PAID_AGAIN = {"state": "completed", "response": {"id": "req-2"}}
SENT = {"state": "submitted"}
NOTE = saved_key("row")

# The entries written in each epoch, and what a try in a later epoch reads.
OWED = {
    "nothing": ([], None),
    "sent, not answered": ([(3, "row", SENT)], None),
    "refused": ([(3, "row", SENT), (3, "row", None)], None),
    "paid, not saved": ([(3, "row", SENT), (3, "row", PAID)], PAID),
    "paid and saved": ([(3, "row", PAID), (3, NOTE, ["s3"])], None),
    "paid and gone": ([(3, "row", PAID), (3, NOTE, "gone")], None),
    "gone, paid again, not saved": (
        [(3, "row", PAID), (3, NOTE, "gone"), (3, NOTE, None), (3, "row", PAID_AGAIN)],
        PAID_AGAIN,
    ),
    "saved, cleared, paid again, not saved": (
        [(3, "row", PAID), (3, NOTE, ["s3"]), (7, "row", PAID_AGAIN)],
        PAID_AGAIN,
    ),
    "saved, cleared, sent, not answered": ([(3, "row", PAID), (3, NOTE, ["s3"]), (7, "row", SENT)], None),
    "not saved, cleared, saved": ([(3, "row", PAID), (7, NOTE, ["s3"])], None),
    "not saved, cleared, gone": ([(3, "row", PAID), (7, NOTE, "gone")], None),
    "not saved, cleared, gone, refused": (
        [(3, "row", PAID), (7, "row", SENT), (7, "row", PAID)],
        PAID,
    ),
    "not saved, cleared, paid again, saved": (
        [(3, "row", PAID), (7, "row", PAID_AGAIN), (7, NOTE, ["s3"])],
        None,
    ),
}


@pytest.mark.parametrize("epochs_after", [0, 4], ids=["one Clear", "two Clears"])
@pytest.mark.parametrize(("written", "owed"), OWED.values(), ids=OWED)
def test_only_paid_images_that_were_not_saved_are_owed_after_a_clear(written, owed, epochs_after):
    store = MemoryStore()
    for epoch, key, value in written:
        with Journal(StateStore(store), Try(1, epoch), LOG) as journal:
            journal.set(key, value)
    now = max([epoch for epoch, *_ in written], default=3) + 4
    if epochs_after:
        # A Clear that wrote nothing.
        assert reread(store, now).get("row") == owed
    journal = reread(store, now + epochs_after)
    assert journal.get("row") == owed
    assert journal.get(NOTE) is None


@pytest.mark.parametrize(
    ("rows", "logged"),
    [
        (0, "No row was billed but not saved before."),
        (1, "1 row was billed but not saved before; it is saved without paying again."),
        (2, "2 rows were billed but not saved before; they are saved without paying again."),
    ],
)
def test_clear_is_logged_with_the_number_of_owed_rows(rows, logged):
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("lost", SENT)
        for row in range(rows):
            journal.set(f"row {row}", PAID)
    lines: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: lines.append(text % values))
    with Journal(StateStore(store), Try(1, 7), log):
        assert lines == [f"The task was cleared. {logged}"]


@pytest.mark.parametrize("note", [["s3"], "gone"], ids=str)
def test_retry_after_a_clear_reads_whether_the_owed_image_was_saved_or_gone(note):
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("row", PAID)
    with Journal(StateStore(store), Try(1, 7), LOG) as journal:
        assert journal.get("row") == PAID
        journal.set(NOTE, note)
    again = reread(store, 7)
    assert (again.get("row"), again.get(NOTE)) == (PAID, note)


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_deleted_segment_does_not_hide_the_others(deleted):
    store = MemoryStore()
    for n in range(3):
        with Journal(StateStore(store), Try(1, 3), LOG) as journal:
            journal.set(f"row {n}", {"n": n})
    del store.values[KEY.format(number=deleted)]
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        assert [journal.get(f"row {n}") for n in range(3)] == [
            None if n == deleted else {"n": n} for n in range(3)
        ]
        journal.set("new", {"n": 3})
    again = reread(store)
    assert again.get("new") == {"n": 3}
    assert all(again.get(f"row {n}") == {"n": n} for n in range(3) if n != deleted)


def test_failed_write_raises_and_stores_nothing():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("a", {"n": 1})
        store.fails = 1
        with pytest.raises(ConnectionError):
            journal.set("b", {"n": 2})
        journal.set("c", {"n": 3})
    again = reread(store)
    assert [again.get(key) for key in "abc"] == [{"n": 1}, None, {"n": 3}]


def test_new_segment_whose_write_response_was_lost_does_not_hide_later_entries():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.set("filler", "x" * (SEGMENT_BYTES - 400))
        journal.set("row", {"state": "submitted"})
        store.gate = threading.Event()
        store.is_writing.clear()
        journal.write_later("busy", 1)
        assert store.is_writing.wait(60)
        # One commit, which opens a segment and contains the rollback of a 429.
        notes, rollback = journal.write_later("notes", "x" * 400), journal.write_later("row", None)
        store.loses_response_to = KEY.format(number=1)
        store.gate.set()
        for written in (notes, rollback):
            with pytest.raises(ConnectionError):
                written.result(60)
        journal.set("row", PAID)
    assert reread(store).get("row") == PAID


def test_deferred_entries_are_written_when_the_journal_is_closed():
    store = MemoryStore()
    with Journal(StateStore(store), Try(1, 3), LOG) as journal:
        journal.write_later("a", {"n": 1})
    assert reread(store).get("a") == {"n": 1}


@pytest.mark.parametrize("stored", ["x", {"epoch": 3}, {"epoch": 3, "entries": 7}], ids=str)
def test_unreadable_segment_raises_an_error_that_names_it(stored):
    store = MemoryStore()
    store.values["getimg_batch_0000"] = json.dumps(stored)
    with (
        pytest.raises(LedgerError, match=r"Delete 'getimg_batch_0000' from the task's state"),
        Journal(StateStore(store), Try(1, 3), LOG),
    ):
        pass


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.none() | st.integers() | st.text(max_size=9000)), max_size=30
    ),
    st.integers(1, 4),
)
def test_last_value_of_each_key_survives_any_sequence_of_writes_and_tries(entries, tries):
    store = MemoryStore()
    expected: dict[str, Any] = {}
    for part in range(tries):
        with Journal(StateStore(store), Try(1, 3), LOG) as journal:
            for key, value in entries[part::tries]:
                journal.set(key, {"value": value})
                expected[key] = {"value": value}
    again = reread(store)
    assert {key: again.get(key) for key in expected} == expected
