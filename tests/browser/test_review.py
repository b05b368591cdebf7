# SPDX-License-Identifier: Apache-2.0
"""
A person's approval: images are shown on the page Required Actions, one is rejected, and only the others are published.

Airflow is served below a path, as behind a reverse proxy that serves more than Airflow.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import expect

from airflow_provider_getimg.version_compat import SORTS_XCOMS
from devstack import Airflow
from tests.browser.conftest import log_in
from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

pytestmark = pytest.mark.long

DAG_ID = "getimg_review_before_publish"
PATH = "/airflow"
SUBJECTS = ["<script>alert(1)</script> a fox", "](https://evil.example) `an owl`", "a night train"]


@pytest.fixture
def airflow(
    seaweedfs: SeaweedFS,
    simulator: GetimgSimulator,
    bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
    state_extra: dict[str, str],
) -> Iterator[Airflow]:
    """An Airflow for this test, which runs schedules: the shared one doesn't start DAGs that an asset triggers."""
    home = tmp_path_factory.mktemp("review")
    dags = home / "dags"
    dags.mkdir()
    shutil.copy(REPOSITORY / "dags" / f"{DAG_ID}.py", dags)
    env = {
        "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
        "AIRFLOW_CONN_GETIMG_DEFAULT": simulator.process.connection(**state_extra),
        "AIRFLOW_VAR_GETIMG_BUCKET": bucket,
    }
    with Airflow(home, [dags], path=PATH, env=env) as airflow:
        airflow.create_pool("getimg", 4)
        for dag_id in (DAG_ID, "getimg_site"):
            airflow.wait_for_dag(dag_id)
            airflow.unpause(dag_id)
        yield airflow


@pytest.fixture
def requested(page: Page) -> list[str]:
    """The URLs that the page requests."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    return urls


def test_only_approved_images_are_published(
    airflow: Airflow, seaweedfs: SeaweedFS, bucket: str, page: Page, requested: list[str]
):
    run_id = airflow.trigger(DAG_ID, conf={"subjects": SUBJECTS})
    assert airflow.poll(lambda: airflow.waiting_state(DAG_ID, run_id, "review"), 120)
    log_in(page, airflow.url)
    page.goto(f"{airflow.url}/required_actions")
    page.get_by_role("link", name="Publish these images?").click()
    for number, subject in enumerate(SUBJECTS, 1):
        expect(page.get_by_role("link", name=f"{subject}, as a poster")).to_be_visible()
        image = page.get_by_role("img", name=f"Image {number}")
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", value=True)
        assert image.evaluate("(image) => image.naturalWidth") > 0
    address = page.get_by_role("link", name="Image 2").get_attribute("href")
    assert address is not None
    assert address.startswith(f"{PATH}/getimg/images/")
    page.get_by_role("combobox", name="Select one or multiple values").fill("2")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Approve").click()
    assert airflow.wait(DAG_ID, run_id) == "success", airflow.failed_log(DAG_ID, run_id)

    rows = airflow.xcom(DAG_ID, run_id, "save_to_s3")
    names = [row["key"].removeprefix("review/") for row in rows]
    client = seaweedfs.client()
    stored = {entry["Key"]: entry["ETag"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert stored.keys() == {
        *(f"review/{name}" for name in names),
        f"published/{names[0]}",
        f"published/{names[2]}",
    }
    reviews = [client.get_object_tagging(Bucket=bucket, Key=f"review/{name}")["TagSet"] for name in names]
    assert [tags[0]["Value"] for tags in reviews] == ["approved", "rejected", "approved"]
    for name in (names[0], names[2]):
        assert stored[f"published/{name}"] == stored[f"review/{name}"]
        copy, original = (
            client.head_object(Bucket=bucket, Key=f"{folder}/{name}") for folder in ("published", "review")
        )
        assert copy["Metadata"] == original["Metadata"]
        assert copy["ContentType"] == "image/webp"

    [site] = airflow.poll(lambda: runs_of_the_site(airflow), 60) or [None]
    assert site is not None
    published = airflow.xcom("getimg_site", site, "update_site")
    assert published == [f"s3://{bucket}/published/{name}" for name in (names[0], names[2])]

    page.goto(urljoin(airflow.url, address))
    expect(page.get_by_role("heading", level=1)).to_contain_text(SUBJECTS[1])
    if SORTS_XCOMS:
        page.goto(f"{airflow.url}/dags/{DAG_ID}/runs/{run_id}/tasks/save_to_s3/details")
        page.goto(leads_to(page.get_by_role("link", name="Images", exact=True)))
        expect(page.get_by_role("img")).to_have_count(len(SUBJECTS))
        page.goto(airflow.url)
        page.get_by_role("button", name="Browse").click()
        page.goto(leads_to(page.get_by_role("menuitem", name="Image spend")))
        page.get_by_role("link", name=DAG_ID).click()
        expect(page.locator("dl")).to_contain_text("0.12 USD")
    hosts = {urlsplit(url).hostname for url in requested if url.startswith("http")}
    assert hosts == {"127.0.0.1"}


def leads_to(link: Locator) -> str:
    """Return the whole URL of a link that would open in a new tab."""
    return str(link.evaluate("(element) => element.closest('a').href"))


def runs_of_the_site(airflow: Airflow) -> list[str]:
    """Return the ids of the site's successful runs."""
    runs = airflow.request("GET", "/dags/getimg_site/dagRuns")["dag_runs"]
    return [run["dag_run_id"] for run in runs if run["state"] == "success"]
