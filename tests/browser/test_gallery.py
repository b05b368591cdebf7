# SPDX-License-Identifier: Apache-2.0
"""The gallery and the spend page in Airflow's own UI, with nothing loaded from other hosts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import log_in
from tests.conftest import STACK_BUCKET
from tests.support.marks import LISTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import Airflow

PROMPT = "<b>A red fox</b> & its den"


@pytest.fixture
def saved(airflow_stack: Airflow, simulator: GetimgSimulator) -> str:
    """Save the three images of a batch, and return the run's id."""
    airflow_stack.wait_for_dag("batch")
    airflow_stack.unpause("batch")
    requests = [{"prompt": f"{PROMPT} {number}", "labels": {"sku": f"A-{number}"}} for number in range(3)]
    key = "gallery/{sku}.{extension}"
    run_id = airflow_stack.trigger("batch", conf={"requests": requests, "key": key, "if_exists": "replace"})
    assert airflow_stack.wait("batch", run_id) == "success"
    return run_id


@pytest.fixture
def requested(page: Page) -> Iterator[list[str]]:
    """The URLs that the page requests."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    return urls


def expect_drawn(images: Locator, count: int) -> None:
    """Check that there are ``count`` images, and that each was loaded."""
    expect(images).to_have_count(count)
    for number in range(count):
        images.nth(number).scroll_into_view_if_needed()
        expect(images.nth(number)).to_have_js_property("complete", value=True)
        assert images.nth(number).evaluate("(image) => image.naturalWidth") > 0


@LISTS
def test_gallery_is_in_the_browse_menu_and_opens_single_images(
    airflow_stack: Airflow, saved: str, page: Page, requested: list[str]
):
    log_in(page, airflow_stack.url)
    page.get_by_role("button", name="Browse").click()
    link = page.get_by_role("menuitem", name="Images")
    expect(link).to_be_visible()
    page.goto(f"{airflow_stack.url}/getimg/images/?run={saved.replace('+', '%2B')}")
    expect_drawn(page.get_by_role("img"), 3)
    page.get_by_role("img", name=f"{PROMPT} 1").click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(f"{PROMPT} 1")
    expect(page.locator("dl")).to_contain_text("0.04 USD")
    expect(page.locator("dl")).to_contain_text(f"s3://{STACK_BUCKET}/gallery/A-1.")
    expect_drawn(page.get_by_role("img"), 1)
    page.keyboard.press("ArrowRight")
    expect(heading).to_have_text(f"{PROMPT} 2")
    page.keyboard.press("ArrowLeft")
    expect(heading).to_have_text(f"{PROMPT} 1")
    page.keyboard.press("Escape")
    expect(heading).to_have_text("Images")
    hosts = {urlsplit(url).hostname for url in requested if url.startswith("http")}
    assert hosts == {"127.0.0.1"}


@LISTS
def test_filters_narrow_the_list_of_images(airflow_stack: Airflow, saved: str, page: Page):
    log_in(page, airflow_stack.url)
    page.goto(f"{airflow_stack.url}/getimg/images/")
    page.get_by_label("Run", exact=True).fill(saved)
    page.get_by_label("Day of the run (UTC)").fill(saved.removeprefix("manual__")[:10])
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("img")).to_have_count(3)
    expect(page.get_by_label("Run", exact=True)).to_have_value(saved)
    page.get_by_label("Day of the run (UTC)").fill("2020-01-01")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("img")).to_have_count(0)
    page.get_by_label("Day of the run (UTC)").fill("")
    page.get_by_label("Model").fill("another-model")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("model=another-model"))
    expect(page.get_by_role("img")).to_have_count(0)


@LISTS
def test_thumbnail_shows_keyboard_focus(airflow_stack: Airflow, saved: str, page: Page):
    log_in(page, airflow_stack.url)
    page.goto(f"{airflow_stack.url}/getimg/images/?run={saved.replace('+', '%2B')}")
    page.get_by_role("button", name="Filter").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    link = page.locator(".grid a").first
    expect(link).to_be_focused()
    expect(link).to_have_css("outline-style", "solid")
    around, image = link.bounding_box(), link.get_by_role("img").bounding_box()
    assert around == image


@LISTS
def test_task_page_links_to_the_images_of_the_task(airflow_stack: Airflow, saved: str, page: Page):
    log_in(page, airflow_stack.url)
    page.goto(f"{airflow_stack.url}/dags/batch/runs/{saved}/tasks/generate/details")
    link = page.get_by_role("link", name="Images", exact=True)
    expect(link).to_be_visible()
    address = link.get_attribute("href")
    assert address is not None
    page.goto(address)
    expect(page.get_by_role("img")).to_have_count(3)


@LISTS
def test_spend_page_charts_the_cost_of_a_dag_by_day(
    airflow_stack: Airflow, saved: str, page: Page, requested: list[str]
):
    log_in(page, airflow_stack.url)
    page.get_by_role("button", name="Browse").click()
    expect(page.get_by_role("menuitem", name="Image spend")).to_be_visible()
    page.goto(f"{airflow_stack.url}/getimg/spend/")
    page.get_by_role("link", name="batch", exact=True).click()
    expect(page.get_by_role("textbox", name="DAG")).to_have_value("batch")
    chart = page.get_by_role("img", name="Billed to tasks by day")
    expect(chart).to_be_visible()
    heights = chart.locator(".bar").evaluate_all("(bars) => bars.map((bar) => bar.getBBox().height)")
    assert (len(heights), max(heights), heights[-1]) == (30, 100, 100)
    table = page.get_by_role("table", name="By day (UTC)")
    today = table.get_by_role("row").nth(1).inner_text()
    spent, account = (float(part) for part in today.split()[1:])
    # This user may read the connection, and other tests spend from the same account.
    assert spent >= 0.12
    assert account >= 0.12
    assert {urlsplit(url).hostname for url in requested if url.startswith("http")} == {"127.0.0.1"}


@LISTS
def test_a_video_plays(airflow_stack: Airflow, simulator: GetimgSimulator, page: Page):
    simulator.settings(video_latency=0.5)
    airflow_stack.wait_for_dag("videos")
    airflow_stack.unpause("videos")
    run_id = airflow_stack.trigger("videos", conf={"count": 1})
    assert airflow_stack.wait("videos", run_id) == "success"
    log_in(page, airflow_stack.url)
    page.goto(f"{airflow_stack.url}/getimg/images/?run={run_id.replace('+', '%2B')}")
    page.locator("video").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fox 0")
    video = page.locator("figure video")
    expect(video).to_have_attribute("aria-label", "Fox 0")
    # Playwright's own waiting runs text as code, which the page's content security policy forbids.
    video.evaluate(
        """(video) => new Promise((resolve, reject) => {
            video.addEventListener("timeupdate", () => video.currentTime > 0.2 && resolve());
            video.addEventListener("error", () => reject(new Error(video.error.message)));
            video.muted = true;
            video.play().catch(reject);
        })"""
    )
    assert video.evaluate("(video) => [video.videoWidth > 0, video.error]") == [True, None]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("path", "images"),
    [
        pytest.param("images/?run={run}", 3, id="images", marks=LISTS),
        pytest.param("images/batch/{run}/generate/-1/0", 1, id="image"),
        pytest.param("spend/?dag=batch", 1, id="spend", marks=LISTS),
    ],
)
def test_page_fits_a_phone_in_the_light_and_dark_themes(
    airflow_stack: Airflow, saved: str, browser: Browser, scheme: str, path: str, images: int
):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    try:
        page = context.new_page()
        log_in(page, airflow_stack.url)
        page.goto(f"{airflow_stack.url}/getimg/{path.format(run=saved.replace('+', '%2B'))}")
        expect(page.get_by_role("img")).to_have_count(images)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert is_dark(page) == (scheme == "dark")
        for text in page.locator("body *:visible").all():
            assert text.evaluate("(element) => parseFloat(getComputedStyle(element).fontSize)") >= 12
        for target in page.locator("nav a, button, input:visible").all():
            box = target.bounding_box()
            assert box is not None
            assert box["height"] >= 24
    finally:
        context.close()


def is_dark(page: Page) -> bool:
    """Return whether the page's background is dark."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", colour)[0]) < 128


def test_pages_have_the_theme_chosen_in_airflow(airflow_stack: Airflow, page: Page):
    log_in(page, airflow_stack.url)
    page.get_by_role("button", name="User").click()
    page.get_by_role("menuitem", name="Appearance").click()
    page.get_by_text("Dark", exact=False).first.click()
    expect(page.locator("html")).to_have_class(re.compile("dark"))
    # The system's theme is light in these tests.
    for path in ("images", "spend"):
        page.goto(f"{airflow_stack.url}/getimg/{path}/")
        assert is_dark(page)
    page.evaluate("localStorage.setItem('theme', 'light')")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert not is_dark(page)
    page.evaluate("localStorage.setItem('theme', 'system')")
    page.reload()
    assert is_dark(page)


def test_copy_button_copies_the_uri_and_a_click_selects_it(airflow_stack: Airflow, saved: str, page: Page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    log_in(page, airflow_stack.url)
    page.goto(f"{airflow_stack.url}/getimg/images/batch/{saved.replace('+', '%2B')}/generate/-1/0")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    uri = page.locator("#uri").inner_text()
    assert uri.startswith(f"s3://{STACK_BUCKET}/")
    assert page.evaluate("navigator.clipboard.readText()") == uri
    # Without HTTPS there is no clipboard, but a click selects the whole URI.
    page.locator("#uri").click()
    assert page.evaluate("getSelection().toString()") == uri
