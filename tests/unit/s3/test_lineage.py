# SPDX-License-Identifier: Apache-2.0
"""Saved objects are reported to Airflow, and a failed report never fails a task whose objects are saved."""

from __future__ import annotations

import logging
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.definitions import asset as asset_definitions
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import context as execution_context
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetResult, ErrorResponse
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_getimg.s3 import lineage
from airflow_provider_getimg.s3.lineage import collect_hook_lineage, emit_asset_events

if TYPE_CHECKING:
    from pathlib import Path

ALIAS = AssetAlias("pictures")
SHA256 = "5e" * 32


def saved(key: str, **fields: Any) -> Any:
    copy = SimpleNamespace(
        bucket="b",
        key=key,
        uri=f"s3://b/{key}",
        generation_id="gen_1",
        index=0,
        model=fields.get("model", "seedream-5-lite"),
        cost=Decimal("0.04"),
    )
    return SimpleNamespace(item=copy, size=7, sha256=SHA256, mime_type="image/png")


def numbered(count: int) -> list[Any]:
    return [saved(f"{n}.png") for n in range(count)]


class Asked:
    """Airflow's supervisor, which finds assets by their URIs; None means that the API server is unavailable."""

    def __init__(self, names: dict[str, str] | None) -> None:
        self.names = names
        self.uris: list[str] = []

    def send(self, message: Any) -> Any:
        self.uris.append(message.uri)
        if self.names is None:
            return ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "timed out"})
        if message.uri not in self.names:
            return ErrorResponse(error=ErrorType.ASSET_NOT_FOUND, detail={"uri": message.uri})
        return AssetResult(name=self.names[message.uri], uri=message.uri, group="asset", extra={})


@pytest.fixture
def ask(monkeypatch):
    """Return a function that lets emit_asset_events find assets by their URIs."""

    def make(names: dict[str, str] | None) -> Asked:
        asked = Asked(names)
        monkeypatch.setattr(execution_context._AssetRefResolutionMixin, "_asset_ref_cache", {})
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", asked, raising=False)
        return asked

    return make


@pytest.fixture
def emit(monkeypatch, caplog):
    """Return a function that emits files' events, and returns the warnings and the alias's events as names and URIs."""
    # Otherwise a supervisor that another test set would be used.
    monkeypatch.delattr(task_runner, "SUPERVISOR_COMMS", raising=False)

    def run(files: list[Any], *outlets: Any) -> tuple[list[tuple[str, str]], list[str]]:
        context: Any = {"outlet_events": OutletEventAccessors()}
        with caplog.at_level(logging.WARNING):
            emit_asset_events(context, outlets or [ALIAS], files)
        events = context["outlet_events"][ALIAS].asset_alias_events
        run.accessors = context["outlet_events"]
        return (
            [(event.dest_asset_key.name, event.dest_asset_key.uri) for event in events],
            [record.getMessage() for record in caplog.records],
        )

    return run


def test_asset_event_records_the_file_and_its_cost(emit):
    emit([saved("poster.png")])
    [event] = emit.accessors[ALIAS].asset_alias_events
    assert event.extra == {
        "generation_id": "gen_1",
        "index": 0,
        "model": "seedream-5-lite",
        "cost_usd": "0.04",
        "bytes": 7,
        "sha256": SHA256,
        "mime_type": "image/png",
    }


@pytest.mark.parametrize(
    ("key", "path"),
    [
        pytest.param("a/b-1.png", "a/b-1.png", id="plain"),
        pytest.param("ü 中.png", "%C3%BC%20%E4%B8%AD.png", id="not ASCII"),
        pytest.param("a#1.png", "a%231.png", id="fragment"),
        pytest.param("a?b=2&a=1", "a%3Fb=2&a=1", id="query"),
        pytest.param("100%25.png", "100%2525.png", id="percent"),
        pytest.param("user:word@b.png", "user:word@b.png", id="user"),
        pytest.param("/a//b.png", "/a//b.png", id="slashes"),
    ],
)
def test_asset_uri_keeps_the_whole_key_with_special_characters_escaped(emit, key, path):
    assert emit([saved(key)]) == ([(f"s3://b/{path}", f"s3://b/{path}")], [])


def test_uri_too_long_for_airflow_is_logged_and_the_other_files_get_events(emit):
    long = "中" * 170
    events, warnings = emit([saved("1.png"), saved(long), saved("2.png")])
    assert [uri for _, uri in events] == ["s3://b/1.png", "s3://b/2.png"]
    assert warnings == [
        f"s3://b/{long} is saved, but has no asset event: Asset uri cannot exceed 1500 characters"
    ]


def test_long_uri_gets_a_unique_name_short_enough_for_the_postgresql_index(emit):
    events, warnings = emit([saved(f"{'中' * 165}{n}") for n in range(2)])
    assert warnings == []
    assert all(1300 < len(uri) <= 1500 for _, uri in events)
    # A PostgreSQL index entry holds 2,704 bytes, of which PostgreSQL itself uses 16 to 24.
    assert all(len(name) + len(uri) < 2680 for name, uri in events)
    assert len({name for name, _ in events}) == 2


@pytest.mark.parametrize("outlet", [ALIAS, Asset("folder", "s3://b/folder")], ids=["alias", "asset"])
def test_unencodable_text_omits_only_its_own_file_from_the_events(emit, outlet):
    events, warnings = emit([saved("1.png", model="\ud800"), saved("2.png")], outlet)
    files = emit.accessors[outlet].extra.get("files", [])
    assert [uri for _, uri in events] + [file["uri"] for file in files] == ["s3://b/2.png"]
    [warning] = warnings
    assert warning.startswith("'s3://b/1.png' is saved, but has no asset event: ")


def test_event_goes_to_the_existing_asset_with_the_same_uri(emit, ask):
    ask({"s3://b/poster.png": "poster"})
    events, warnings = emit([saved("poster.png"), saved("new.png")])
    assert events == [("poster", "s3://b/poster.png"), ("s3://b/new.png", "s3://b/new.png")]
    assert warnings == []


@pytest.mark.parametrize("key", ["x/gen_1-0.png", f"x/{SHA256}.png"], ids=["generation id", "digest"])
def test_key_with_a_generation_id_or_digest_is_not_looked_up(emit, ask, key):
    asked = ask({})
    events, _ = emit([saved(key)])
    assert asked.uris == []
    assert [uri for _, uri in events] == [f"s3://b/{key}"]


def test_number_of_asset_lookups_is_limited(emit, ask):
    asked = ask({})
    events, _ = emit(numbered(lineage.LOOKUPS + 5))
    assert len(asked.uris) == lineage.LOOKUPS
    assert len(events) == lineage.LOOKUPS + 5


def test_unavailable_api_server_is_queried_only_once(emit, ask):
    asked = ask(None)
    events, warnings = emit(numbered(3))
    assert [uri for _, uri in events] == ["s3://b/0.png", "s3://b/1.png", "s3://b/2.png"]
    assert asked.uris == ["s3://b/0.png"]
    [warning] = warnings
    assert warning.startswith(
        "Assets are named by their URIs, as Airflow can't list the names that DAGs gave them: "
    )


@pytest.mark.parametrize(
    "outlet",
    [
        pytest.param(Asset("folder", "s3://b/folder"), id="asset"),
        pytest.param(Asset.ref(name="folder"), id="by name"),
        pytest.param(Asset.ref(uri="s3://b/folder"), id="by URI"),
    ],
)
def test_single_event_of_an_asset_outlet_lists_all_files(emit, ask, monkeypatch, outlet):
    ask({})
    known = Asset("folder", "s3://b/folder")
    monkeypatch.setattr(
        execution_context._AssetRefResolutionMixin, "_get_asset_from_db", staticmethod(lambda **_: known)
    )
    emit(numbered(2), outlet)
    assert [file["uri"] for file in emit.accessors[known].extra["files"]] == ["s3://b/0.png", "s3://b/1.png"]


SQLITE_MOST = 250


@pytest.mark.parametrize(
    ("scheme", "exists", "timeout", "expected"),
    [
        pytest.param("sqlite", True, "5", SQLITE_MOST, id="SQLite"),
        pytest.param("sqlite", True, "10", SQLITE_MOST + 1, id="SQLite, longer wait"),
        pytest.param("sqlite", False, "5", SQLITE_MOST + 1, id="worker without the database's address"),
        pytest.param("postgresql+psycopg2", True, "5", SQLITE_MOST + 1, id="PostgreSQL"),
    ],
)
def test_events_are_limited_only_on_local_sqlite_with_a_short_timeout(
    emit, monkeypatch, tmp_path: Path, scheme, exists, timeout, expected
):
    database = tmp_path / "airflow.db"
    if exists:
        database.touch()
    monkeypatch.setattr(asset_definitions, "SQL_ALCHEMY_CONN", f"{scheme}:///{database}")
    monkeypatch.setenv("AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT", timeout)
    events, warnings = emit(numbered(SQLITE_MOST + 1))
    assert len(events) == expected
    assert [warning.partition(":")[0] for warning in warnings] == (
        ["All files are saved, but only the first 250 of 251 get an asset event"]
        if expected == SQLITE_MOST
        else []
    )


def test_outlet_whose_event_fails_is_logged_and_does_not_raise(caplog):
    emit_asset_events({}, [ALIAS, Asset("folder", "s3://b/folder")], [saved("1.png")])
    assert [record.getMessage() for record in caplog.records] == [
        "The files are saved, but are in no asset event of pictures: 'outlet_events'",
        "The files are saved, but are in no asset event of folder: 'outlet_events'",
    ]


def test_failed_lineage_collector_is_logged_and_does_not_raise(monkeypatch, caplog):
    from airflow.providers.common.compat.lineage import hook

    def away() -> None:
        raise RuntimeError("no collector")

    monkeypatch.setattr(hook, "get_hook_lineage_collector", away)
    collect_hook_lineage(object(), [saved("1.png")])
    assert [record.getMessage() for record in caplog.records] == [
        "The files are saved, but not all of them are in Airflow's hook lineage: no collector"
    ]
