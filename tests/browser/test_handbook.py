# SPDX-License-Identifier: Apache-2.0
"""The built handbook in a browser, from disk and from a server: everything comes from there, the search included."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

REPOSITORY = Path(__file__).parents[2]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module", params=["disk", "server"])
def address(request, site) -> Iterator[str]:
    """The URL of the handbook, with a trailing slash."""
    if request.param == "disk":
        yield f"{site.as_uri()}/"
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def loaded(page: Page, address: str) -> list[str]:
    """The URLs that the page has requested from elsewhere so far, and the errors of its scripts."""
    found: list[str] = []
    page.on(
        "request", lambda sent: None if sent.url.startswith((address, "data:")) else found.append(sent.url)
    )
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def test_every_page_loads_without_requests_to_other_hosts_or_script_errors(page, site, address, loaded):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for file in pages:
        if file.name != "404.html":
            page.goto(f"{address}{file.relative_to(site).as_posix()}")
            expect(page.locator("article h1").first).to_be_visible()
    assert loaded == []


@pytest.mark.parametrize("start", ["index.html", "reference/errors.html"])
def test_search_leads_from_an_error_class_to_the_troubleshooting_page(page, address, loaded, start):
    page.goto(f"{address}{start}")
    # The theme's search reacts to key presses.
    page.get_by_role("textbox", name="Search").press_sequentially("OutcomeUnknownError")

    results = page.locator(".md-search-result__link")
    expect(results.first).to_be_visible()
    results.and_(page.locator("[href*='troubleshooting.html#']")).first.click()

    expect(page.locator("article h1")).to_contain_text("Troubleshooting")
    assert loaded == []
