# SPDX-License-Identifier: Apache-2.0
"""A connection of type getimg.ai in Airflow's own UI: added, tested, and its key never shown.

With ``SCREENSHOTS=1`` it updates the handbook's screenshot of the form.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from packaging.version import Version
from playwright.sync_api import expect

from airflow_provider_getimg.version_compat import READS_CONN_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WRONG_KEY = "sk_this_key_is_wrong"


class Connections:
    """The Connections page of an Airflow, for one connection id."""

    def __init__(self, page: Page, airflow: Airflow, connection_id: str) -> None:
        self.page = page
        self.airflow = airflow
        self.connection_id = connection_id
        self.path = f"/connections/{connection_id}"

    def open(self) -> None:
        if self.page.url == "about:blank":
            # Airflow 3.1 forgets the requested page when it logs in.
            self.page.goto(self.airflow.url)
            self.page.get_by_role("link", name="Home").first.wait_for()
        self.page.goto(f"{self.airflow.url}/connections")

    def open_form(self) -> Locator:
        """Open the form that adds a getimg.ai connection."""
        self.open()
        self.page.get_by_role("button", name="Add Connection").click()
        form = self.page.get_by_role("dialog")
        form.get_by_role("combobox", name="Connection Type").click()
        self.page.get_by_role("option", name="getimg.ai", exact=True).click()
        expect(form.get_by_label("API key", exact=True)).to_be_visible()
        return form

    def add(self, *, key: str, base_url: str, timeout: str) -> None:
        form = self.open_form()
        form.get_by_label("Connection ID").fill(self.connection_id)
        form.get_by_label("Base URL").fill(base_url)
        form.get_by_label("API key", exact=True).fill(key)
        form.get_by_role("button", name="Extra Fields", exact=True).click()
        form.get_by_label("Timeout (seconds)").fill(timeout)
        form.get_by_role("button", name="Save").click()
        expect(form).to_be_hidden()
        expect(self.row).to_be_visible()

    def give_a_port(self) -> None:
        """Move the port from the base URL into its own field, which the form hides.

        Without it, Airflow itself may reject the test: see ``test_connection_test_succeeds_without_a_port``.
        """
        host, _, port = self.saved()["host"].rpartition(":")
        self.airflow.request(
            "PATCH",
            self.path,
            params={"update_mask": ["host", "port"]},
            body={
                "connection_id": self.connection_id,
                "conn_type": "getimg",
                "host": host,
                "port": int(port),
            },
        )
        self.open()

    def test(self) -> httpx.Response:
        """Click the test button, and return Airflow's response."""
        with self.page.expect_response("**/api/v2/connections/test") as waiting:
            self.row.get_by_role("button", name="Test Connection").click()
        response = waiting.value
        return httpx.Response(response.status, content=response.body())

    @property
    def row(self) -> Locator:
        cell = self.page.get_by_role("cell", name=self.connection_id, exact=True)
        return self.page.get_by_role("row").filter(has=cell)

    def saved(self) -> dict:
        return self.airflow.request("GET", self.path)


@pytest.fixture
def connections(page: Page, airflow_stack: Airflow) -> Iterator[Connections]:
    connections = Connections(page, airflow_stack, f"getimg_{uuid.uuid4().hex[:8]}")
    yield connections
    pattern = {"connection_id_pattern": connections.connection_id}
    if airflow_stack.request("GET", "/connections", params=pattern)["connections"]:
        airflow_stack.request("DELETE", connections.path)


def files_with(text: str, folder: Path) -> list[Path]:
    found = []
    for file in folder.rglob("*"):
        # SQLite's journal can disappear at any moment.
        with suppress(FileNotFoundError):
            if file.is_file() and text.encode() in file.read_bytes():
                found.append(file)
    return found


def number_of_models(simulator: GetimgSimulator) -> int:
    bearer = {"Authorization": f"Bearer {simulator.api_key}"}
    response = httpx.get(f"{simulator.url}/v2/models", headers=bearer, trust_env=False)
    return len(response.raise_for_status().json())


def test_form_has_only_the_fields_of_a_getimg_connection(connections):
    form = connections.open_form()
    labels = form.locator("label:visible")

    expect(labels).to_have_text(
        ["Connection ID *", "Connection Type *", "Description", "Base URL", "API key"]
    )
    expect(form.get_by_label("Base URL")).to_have_attribute("placeholder", "https://api.getimg.ai")
    expect(form.get_by_label("API key", exact=True)).to_have_attribute("placeholder", "sk_...")
    expect(form.get_by_label("API key", exact=True)).to_have_attribute("type", "password")

    form.get_by_role("button", name="Extra Fields", exact=True).click()
    expect(labels).to_have_text(
        [
            "Connection ID *",
            "Connection Type *",
            "Timeout (seconds)",
            "Proxy",
            "Allowed networks",
            "State folder",
        ]
    )
    expect(
        form.get_by_text("How long a generation, or the download of a file, may take. Empty means 300.")
    ).to_be_visible()


def test_form_saves_a_getimg_connection(connections, simulator):
    connections.add(key=simulator.api_key, base_url=simulator.url, timeout="120")

    saved = connections.saved()
    assert saved["conn_type"] == "getimg"
    assert saved["host"] == simulator.url
    assert saved["password"] == "***"
    empty = dict.fromkeys(["proxy", "allowed_networks", "state_folder"])
    assert json.loads(saved["extra"]) == {"timeout": 120} | empty
    assert {saved["login"], saved["schema"], saved["port"]} == {None}


def test_form_raises_a_negative_timeout_to_one_second_except_on_airflow_3_1(connections, simulator):
    connections.add(key=simulator.api_key, base_url=simulator.url, timeout="-5")
    # The forms of Airflow 3.1 have no minimum: there, the operators reject it.
    assert json.loads(connections.saved()["extra"])["timeout"] == (1 if READS_CONN_FIELDS else -5)


def test_connection_test_shows_the_number_of_models_and_bills_nothing(connections, simulator):
    connections.add(key=simulator.api_key, base_url=simulator.url, timeout="120")
    connections.give_a_port()
    connections.test()

    toast = connections.page.get_by_role("status", name="Test Connection Successful")
    expect(toast).to_contain_text(
        f"{simulator.url} accepts the key, which has access to {number_of_models(simulator)} models."
    )
    assert not simulator.ledger


def test_connection_test_shows_the_api_error_message_but_not_the_key(connections, simulator):
    connections.add(key=WRONG_KEY, base_url=simulator.url, timeout="120")
    connections.give_a_port()
    connections.test()

    toast = connections.page.get_by_role("status", name="Test Connection Failed")
    expect(toast).to_contain_text("401 invalid_api_key")
    expect(toast).to_contain_text("Missing or invalid API key")
    expect(connections.page.locator("body")).not_to_contain_text(WRONG_KEY)
    assert files_with(WRONG_KEY, connections.airflow.home) == []


@pytest.mark.xfail(
    Version(version("apache-airflow-core")) >= Version("3.3.1"),
    raises=AssertionError,
    reason="since Airflow 3.3.1 its UI sends port 0 for no port, and its server takes that for another host",
    strict=True,
)
def test_connection_test_succeeds_without_a_port(connections, simulator):
    connections.airflow.request(
        "POST",
        "/connections",
        body={
            "connection_id": connections.connection_id,
            "conn_type": "getimg",
            "host": simulator.url,
            "password": simulator.api_key,
        },
    )
    connections.open()
    assert connections.test().json().get("status") is True


def test_api_key_is_neither_shown_nor_written_to_a_file(connections, simulator):
    connections.add(key=simulator.api_key, base_url=simulator.url, timeout="120")
    connections.give_a_port()
    assert connections.test().json()["status"] is True
    connections.row.get_by_role("button", name="Edit Connection").click()

    expect(connections.page.get_by_label("API key", exact=True)).to_have_value("***")
    assert simulator.api_key not in connections.page.content()
    assert simulator.api_key not in connections.page.locator("body").inner_text()
    # The database has the id: the search finds what is stored.
    assert files_with(connections.connection_id, connections.airflow.home)
    assert files_with(simulator.api_key, connections.airflow.home) == []


def test_screenshot_of_the_form_is_saved(connections, tmp_path):
    folder = IMAGES if os.environ.get("SCREENSHOTS") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    form = connections.open_form()
    form.get_by_label("Connection ID").fill("getimg_default")
    form.get_by_label("API key", exact=True).fill("sk_not_a_real_key_at_all")
    # Otherwise the last filled field would have the focus, and a cursor.
    form.get_by_role("heading", name="Add Connection").click()

    picture = folder / "connection-form.png"
    form.screenshot(path=picture, animations="disabled")
    assert picture.stat().st_size > 10_000
