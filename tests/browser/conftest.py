# SPDX-License-Identifier: Apache-2.0
"""A browser for the tests of the UI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

from airflow_provider_getimg.version_compat import SORTS_XCOMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

# Airflow's components, its API server and the browser share two cores.
TIMEOUT_MS = 30_000
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Not session-scoped: Playwright's event loop would keep running in this thread, and a later test could not
# call `asyncio.run()`.
@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    """The installed Chromium, headless."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


def log_in(page: Page, url: str) -> None:
    """Open Airflow's home page. When it logs in, Airflow 3.1 forgets the requested page: wait until it has."""
    page.goto(f"{url}/")
    if not SORTS_XCOMS:
        expect(page.get_by_role("button", name="Browse")).to_be_visible()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page for a new user: no cookies, English, light theme."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        device_scale_factor=2,
        locale="en-US",
        color_scheme="light",
        reduced_motion="reduce",
    )
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()
