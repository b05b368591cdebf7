# SPDX-License-Identifier: Apache-2.0
"""
Two users with different permissions in one Airflow: each sees only the images and the cost of their own DAG.

Airflow's simple auth manager has roles, but no permissions for single DAGs. So a second API server, on the database of
the shared Airflow, uses the FAB provider's: it has users with passwords, who log in on its page.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import httpx
import pytest
from playwright.sync_api import expect

from devstack import GuardedProcess
from devstack.network import LOOPBACK, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

pytestmark = pytest.mark.long

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
# How the prompts of each DAG start: of a batch, and of a single image with its transfer.
PROMPTS = {"batch": "A fox of the batch", "getimg_daily_image": "A postcard for"}
DAGS = tuple(PROMPTS)
PASSWORD = "a password of the tests"
# Runs ``airflow`` commands one after the other in one process: each would take seconds to start.
COMMANDS = """
import json, sys
from airflow.cli.cli_parser import get_parser
parser = get_parser()
for command in json.load(sys.stdin):
    arguments = parser.parse_args(command)
    arguments.func(arguments)
"""


def commands() -> Iterator[list[str]]:
    """Yield the commands that create a user for each DAG, with its name and permission to read it."""
    yield ["fab-db", "migrate"]
    # Each DAG has its own permission, which this command creates.
    yield ["sync-perm", "--include-dags"]
    yield ["roles", "create", *DAGS]
    resources = ["Website", "DAG Runs", "Task Instances", "XComs"]
    yield ["roles", "add-perms", *DAGS, "--action", "can_read", "--resource", *resources]
    for dag_id in DAGS:
        yield ["roles", "add-perms", dag_id, "--action", "can_read", "--resource", f"DAG:{dag_id}"]
        names = f"--username {dag_id} --firstname A --lastname User --email {dag_id}@localhost".split()
        yield ["users", "create", *names, "--role", dag_id, "--password", PASSWORD]


@pytest.fixture(scope="module")
def runs(airflow_stack: Airflow, getimg_simulator_server: GetimgSimulator) -> dict[str, str]:
    """For each DAG, the id of a run that saved an image."""
    batch, daily = DAGS
    conf = {
        "requests": [{"prompt": PROMPTS[batch]}],
        "key": "users/{row}.{extension}",
        "if_exists": "replace",
    }
    return {batch: airflow_stack.run_dag(batch, conf), daily: airflow_stack.run_dag(daily)}


@pytest.fixture(scope="module")
def url(airflow_stack: Airflow, runs: dict[str, str]) -> Iterator[str]:
    """The URL of an API server where the users of ``commands`` can log in."""
    (port,) = free_ports(1)
    url = f"http://{LOOPBACK}:{port}"
    env = airflow_stack.env | {
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__AUTH_MANAGER": FAB,
    }
    made = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(list(commands())),
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    log = airflow_stack.home / "fab.log"
    server = GuardedProcess("The API server with FAB", ["airflow", "api-server"], log=log, env=env)
    try:
        server.wait_until(lambda: responds(f"{url}/api/v2/version"), timeout=120)
        yield url
    finally:
        server.end()


def responds(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def pages(url: str, browser: Browser) -> dict[str, Page]:
    """The list of images of each user, logged in once per module: FAB rejects a sixth login within 40 seconds."""
    pages = {}
    for dag_id in DAGS:
        page = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US").new_page()
        page.goto(f"{url}/getimg/images/")
        expect(page.get_by_role("heading", name="401")).to_be_visible()
        log_in(page, dag_id)
        pages[dag_id] = page
    return pages


def log_in(page: Page, username: str) -> None:
    """Log in through the link to the login page, and wait for the list of images."""
    page.get_by_role("link", name="Log in").click()
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign In").click()
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_visible()


def test_each_user_sees_only_the_images_of_their_own_dag(
    url: str, runs: dict[str, str], pages: dict[str, Page]
):
    images = {}
    for dag_id, page in pages.items():
        page.goto(f"{url}/getimg/images/?run={runs[dag_id].replace('+', '%2B')}")
        image = page.get_by_role("img", name=PROMPTS[dag_id])
        expect(image).to_have_js_property("complete", value=True)
        assert image.evaluate("(image) => image.naturalWidth") > 0
        images[dag_id] = urljoin(url, str(image.locator("xpath=..").get_attribute("href")).partition("?")[0])
        page.goto(f"{url}/getimg/images/")
        expect(page.locator("li .dag").first).to_be_visible()
        assert set(page.locator("li .dag").all_inner_texts()) == {dag_id}
    # The other user has just read each image: what the server caches must not be shown to everyone.
    for dag_id, other in (DAGS, reversed(DAGS)):
        page = pages[dag_id]
        for what in ("", "/file", "/thumbnail"):
            response = page.goto(images[other] + what)
            assert response is not None
            assert (response.status, PROMPTS[other] in response.text()) == (403, False)
        for query in (f"dag={other}", f"run={runs[other].replace('+', '%2B')}"):
            page.goto(f"{url}/getimg/images/?{query}")
            expect(page.get_by_role("img")).to_have_count(0)
            expect(page.locator("body")).not_to_contain_text(PROMPTS[other])


def test_each_user_sees_only_the_cost_of_their_own_dag(url: str, pages: dict[str, Page]):
    # Twice: by then, the server has cached what the other user may read.
    for dag_id, page in [*pages.items(), *pages.items()]:
        page.goto(f"{url}/getimg/spend/")
        table = page.get_by_role("table", name="By DAG")
        expect(table.get_by_role("link")).to_have_text([dag_id])
        expect(page.locator("dl")).to_contain_text("You may not read this connection.")


def test_image_is_not_shown_from_the_cache_to_the_next_user_of_the_browser(
    url: str, runs: dict[str, str], browser: Browser
):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    page = context.new_page()
    page.goto(f"{url}/getimg/images/")
    log_in(page, DAGS[0])
    page.goto(f"{url}/getimg/images/?run={runs[DAGS[0]].replace('+', '%2B')}")
    image = page.get_by_role("img").first
    expect(image).to_have_js_property("complete", value=True)
    address = urljoin(url, str(image.get_attribute("src")))
    page.goto(f"{url}/auth/logout")
    page.goto(f"{url}/getimg/images/")
    log_in(page, DAGS[1])
    response = page.goto(address)
    assert response is not None
    assert response.status == 403
    context.close()
