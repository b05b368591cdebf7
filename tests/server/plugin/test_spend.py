# SPDX-License-Identifier: Apache-2.0
"""The spend page in Airflow's API app: what is summed, for whom, and what is never shown."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_getimg.plugin import costs
from airflow_provider_getimg.plugin.costs import Spend, bars, largest, models_of
from airflow_provider_getimg.plugin.render import _environment
from airflow_provider_getimg.testing.dag_run import DagRunner
from tests.support.marks import LISTS
from tests.support.raw_servers import RawServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = LISTS

MARKUP = '<script>alert(1)</script>"'
RECORDS = {
    "single": {"cost": 0.04, "images": 1, "models": {"seedream-5-lite": 0.04}},
    "batch": {"cost": 1.25, "images": 10, "models": {"seedream-5-lite": 0.25, MARKUP: 1}},
    "edited": ["no record", {"cost": "1000"}],
    # As a custom XCom backend leaves it.
    "elsewhere": "s3://xcoms/other/run/task/0a1b",
}


@pytest.fixture(scope="module")
def spent(airflow_app):
    """Run two DAGs whose tasks record costs."""
    from airflow.sdk import DAG, get_current_context, task

    for dag_id, names in (
        ("spender", ("single", "batch")),
        ("other", ("single", "edited")),
        ("kept-elsewhere", ("elsewhere",)),
    ):
        with DAG(dag_id, schedule=None) as dag:

            def record(name: str) -> None:
                @task(task_id=name)
                def push() -> None:
                    get_current_context()["ti"].xcom_push(key="getimg_cost", value=RECORDS[name])

                push()

            for name in names:
                record(name)
        DagRunner(keep_runs=True)(dag, logical_date=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def view(spent, client_of):
    def view(query: str = "", role: str | None = "viewer", username: str = "somebody", teams: Any = None):
        return client_of(role, username, teams).get(f"/getimg/spend/?{query}")

    return view


def test_recorded_costs_are_summed_by_dag_model_and_day(view):
    text = view().text
    assert "<strong>1.33 USD</strong>" in text
    assert "4 tasks" in text
    assert "the records of 1 more task, whose values are not in Airflow's database." in text
    assert ">spender</a></th><td>1.29</td>" in text
    assert ">other</a></th><td>0.04</td>" in text
    assert ">seedream-5-lite</th><td>0.33</td>" in text
    today = datetime.now(UTC).date()
    # The run's logical date is in January, but its tasks paid today.
    assert f">{today}</th><td>1.33</td>" in text
    assert "Incomplete:" not in text


def test_chart_shows_its_scale_and_dates_and_is_omitted_without_costs(view):
    text = view().text
    assert '<p class="scale"><span>1.33 USD</span><span>0</span></p>' in text
    today = datetime.now(UTC).date()
    assert f'<p class="ends"><span>{today - timedelta(days=29)}</span><span>{today}</span></p>' in text
    assert "<svg" not in view("dag=unknown").text


def test_dag_whose_records_are_all_kept_elsewhere_is_not_called_unknown(view):
    text = view("dag=kept-elsewhere").text
    assert "<strong>0.00 USD</strong>" in text
    assert "the records of 1 more task" in text
    assert "There is no such DAG" not in text


def test_dag_filter_shows_only_the_costs_of_that_dag(view):
    text = view("dag=other").text
    assert "<strong>0.04 USD</strong>" in text
    assert "spender" not in text


@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403), ("viewer", 200), ("admin", 200)])
def test_airflow_decides_who_sees_the_page(view, role, status):
    response = view(role=role)
    assert response.status_code == status
    assert ("USD" in response.text) == (status == 200)


def test_dag_that_the_user_may_not_read_is_neither_counted_nor_named(view):
    text = view(username="only-other").text
    assert "<strong>0.04 USD</strong>" in text
    assert "spender" not in text
    # The same once another user's view has cached the records of both DAGs.
    assert "<strong>1.33 USD</strong>" in view().text
    assert "spender" not in view(username="only-other").text
    response = view("dag=spender", username="only-other")
    assert "1.29" not in response.text


@pytest.mark.parametrize("seen_by_another", [False, True])
def test_dag_whose_xcoms_the_user_may_not_read_is_neither_counted_nor_named(
    view, monkeypatch, plugin_state, seen_by_another
):
    monkeypatch.setattr(plugin_state.costs, "_kept", {})
    if seen_by_another:
        assert "spender" in view().text
    response = view(username="no-xcoms-of-spender")
    assert response.status_code == 200
    assert "<strong>0.04 USD</strong>" in response.text
    assert "spender" not in response.text
    assert "1.29" not in view("dag=spender", username="no-xcoms-of-spender").text


def test_images_of_a_dag_that_the_user_may_not_read_are_hidden(spent, client_of, run_id):
    pages = ("", "0", "0/file", "0/thumbnail")
    listed, *single = (
        client_of("viewer", "only-other").get(
            f"/getimg/images/gallery/{run_id}/transfer/-1/{page}" if page else "/getimg/images/"
        )
        for page in pages
    )
    assert (listed.status_code, listed.text.count("<img")) == (200, 0)
    assert {response.status_code for response in single} <= {403, 404}


def test_model_names_and_the_dag_filter_are_escaped(view):
    text = view().text
    assert MARKUP not in text
    assert MARKUP in unescape(text)
    assert MARKUP not in view("dag=%3Cscript%3Ealert(1)%3C/script%3E%22").text


@pytest.mark.parametrize("username", ["somebody", "only-other"])
@pytest.mark.parametrize("dag", ["spendr", "..", "a/b", "~"])
def test_unknown_dag_shows_an_explanation_and_stays_in_the_form(view, username, dag):
    response = view(f"dag={dag}", username=username)
    assert response.status_code == 200
    assert "There is no such DAG, or " in response.text
    assert f'value="{dag}"' in response.text
    # A cost of zero would be misleading.
    assert "<strong>0.00 USD</strong>" not in response.text


@pytest.mark.parametrize("is_partial", [False, True])
def test_links_keep_the_connection(view, monkeypatch, plugin_state, is_partial):
    monkeypatch.setattr(costs, "_MAX_NEW_RECORDS", 1 if is_partial else 400)
    monkeypatch.setattr(plugin_state.costs, "_kept", {})
    links = re.findall(r'href="/getimg/spend/\?([^"]*)"', view("dag=spender&conn=my+conn").text)
    # In the table, "Show all" and, if records are missing, "Read more".
    assert len(links) == 2 + is_partial
    assert all("conn=my+conn" in link for link in links)
    assert "conn=" not in "".join(re.findall(r'href="([^"]*)"', view("dag=spender").text))
    assert 'name="conn" value="getimg_default"' in view("conn=+").text


def test_balance_is_shown_only_to_users_who_may_read_the_connection(
    view, getimg_conn, simulator, plugin_state, monkeypatch
):
    # The result of an earlier test is cached for a minute.
    monkeypatch.setattr(plugin_state.accounts, "_kept", {})
    text = view(role="viewer").text
    assert "You may not read this connection." in text
    assert "Balance" not in text
    simulator.balance = 12.5
    text = view(role="admin").text
    assert "<strong>12.50 USD</strong>" in text
    assert simulator.api_key not in text


@pytest.fixture
def connection_of_a_team(airflow_app, monkeypatch) -> Iterator[str]:
    from airflow.models.connection import Connection
    from airflow.models.team import Team
    from airflow.utils.session import create_session

    from airflow_provider_getimg.hooks.getimg import GetimgHook

    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with create_session() as session:
        team = Team(name="blue")
        session.add(team)
        session.flush()
        connection = Connection(conn_id="getimg_blue", conn_type=GetimgHook.conn_type, team_name="blue")
        session.add(connection)
    yield "getimg_blue"
    with create_session() as session:
        session.delete(connection)
        session.flush()
        session.delete(team)


def test_connection_of_a_team_is_readable_only_by_that_team(view, connection_of_a_team):
    refused = "You may not read this connection."
    assert refused not in view(f"conn={connection_of_a_team}", role="op", teams=["blue"]).text
    # The first user's result, cached for a minute, must not be shown to others.
    assert refused in view(f"conn={connection_of_a_team}", role="op", teams=["red"]).text
    assert refused in view(f"conn={connection_of_a_team}", role="op").text
    assert refused not in view("conn=getimg_default", role="op").text


def test_missing_connection_does_not_hide_the_recorded_costs(view):
    text = unescape(view("conn=no_such_connection", role="admin").text)
    assert "The connection could not be read: AirflowNotFoundException." in text
    assert "<strong>1.33 USD</strong>" in text


def test_key_of_another_service_is_not_sent(view, monkeypatch, plugin_state):
    monkeypatch.setattr(plugin_state.accounts, "_kept", {})
    with RawServer(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as server:
        other = {"conn_type": "slack", "password": "xoxb-secret", "host": server.url}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_API", json.dumps(other))
        text = unescape(view("conn=slack_api", role="admin").text)
    assert "Connection 'slack_api' must have the type 'getimg'." in text
    assert server.heads == []


@pytest.mark.parametrize(
    ("record", "models"),
    [
        (None, {}),
        ({}, {}),
        ({"cost": 0.5}, {"unknown": 0.5}),
        ({"cost": 0.5, "models": {"a": 0.2}}, {"a": 0.2, "unknown": pytest.approx(0.3)}),
        ({"cost": 0.1, "models": {"a": 0.2}}, {"a": 0.2}),
        ({"cost": float("nan")}, {}),
        ({"cost": float("inf")}, {}),
        ({"cost": -1}, {}),
        ({"cost": True}, {}),
        ({"cost": {"cost": 1}, "models": {"a": [1], "b": "2", "c": 3}}, {"c": 3.0}),
        ({"models": ["a"]}, {}),
        ({"cost": 10**400}, {}),
    ],
)
def test_invalid_amounts_in_an_edited_record_are_ignored(record, models):
    assert models_of(record) == models


def test_page_view_reads_a_limited_number_of_records_and_the_next_continues(view, monkeypatch, plugin_state):
    monkeypatch.setattr(costs, "_MAX_NEW_RECORDS", 3)
    monkeypatch.setattr(plugin_state.costs, "_kept", {})
    assert "Incomplete:" in view().text
    text = view().text
    assert "Incomplete:" not in text
    assert "<strong>1.33 USD</strong>" in text


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (0, "0.00 USD"),
        (0.00003, "under 0.0001 USD"),
        (0.0001, "0.0001 USD"),
        (0.04, "0.04 USD"),
        (0.0425, "0.0425 USD"),
        (1234.5, "1234.50 USD"),
    ],
)
def test_amounts_are_formatted_in_usd_and_small_ones_are_not_shown_as_zero(cost, text):
    assert _environment().from_string("{{ cost | usd }}").render(cost=cost) == text


def test_each_day_has_a_bar_in_proportion_to_its_cost():
    spend = Spend(date(2026, 1, 1))
    assert {bar.height for bar in bars(spend)} == {0.0}
    spend.add(date(2026, 1, 2), "a", {"m": 2.0})
    spend.add(date(2026, 1, 3), "a", {"m": 0.5, "n": 0.5})
    drawn = bars(spend)
    assert len(drawn) == costs.DAYS
    assert drawn[-1].day - drawn[0].day == timedelta(days=costs.DAYS - 1)
    assert [bar.height for bar in drawn[:4]] == [0.0, 100.0, 50.0, 0.0]


def test_long_table_ends_with_the_sum_of_the_remaining_rows():
    ranked = largest({f"dag_{number}": float(number) for number in range(60)})
    assert len(ranked) == 51
    assert ranked[0] == ("dag_59", 59.0)
    assert ranked[-1] == (None, float(sum(range(10))))
