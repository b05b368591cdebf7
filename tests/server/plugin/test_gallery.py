# SPDX-License-Identifier: Apache-2.0
"""The gallery in Airflow's own API app: who sees what, and what is never shown."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from PIL import Image

DAG_ID = "gallery"


class Html(HTMLParser):
    """The tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def link(self, rel: str) -> str | None:
        return next((a["href"] for a in self.all("a") if a.get("rel") == rel), None)


@pytest.fixture
def path(run_id):
    def path(task: str, index: int, what: str = "") -> str:
        return f"/getimg/images/{DAG_ID}/{quote(run_id, safe='')}/{task}/-1/{index}{what}"

    return path


def test_the_newest_24_and_then_the_older_ones(viewer):
    seen, url = [], "/getimg/images/"
    while url:
        page = Html(viewer.get(url).text)
        pictures = [image["src"] for image in page.all("img")]
        assert len(pictures) <= 24
        seen += pictures
        url = page.link("next")
    assert len(seen) == len(set(seen)) == 41
    assert "/transfer/" in seen[0] or "/batch/" in seen[0]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("dag=gallery", 24),
        ("dag=another", 0),
        ("task=transfer", 11),
        ("task=batch&map_index=-1", 24),
        ("model=seedream-5-lite", 11),
        ("model=unknown", 0),
        ("day=2026-01-02", 0),
        ("task=transfer&map_index=3", 0),
        ("start=1.2.3.4", 0),
        ("start=junk", 24),
    ],
)
def test_filters(viewer, query, count):
    response = viewer.get(f"/getimg/images/?{query}")
    if "dag=another" in query:
        assert response.status_code in (200, 404)
    else:
        assert response.status_code == 200
    assert len(Html(response.text).all("img")) == count


@pytest.mark.parametrize("query", ["day=yesterday", "dag=..", "dag=a/b", "dag=~", "run=..", "task=~"])
def test_a_filter_that_names_nothing_is_refused(viewer, query):
    assert viewer.get(f"/getimg/images/?{query}").status_code in (400, 404)


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403), ("viewer", 200), ("admin", 200)])
def test_airflow_decides_who_sees_an_image(client_of, path, what, role, status):
    assert client_of(role).get(path("transfer", 0, what)).status_code == status


@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403), ("viewer", 200)])
def test_airflow_decides_who_sees_the_list(client_of, role, status):
    response = client_of(role).get("/getimg/images/")
    assert response.status_code == status
    assert ("s3://" in response.text or "<li>" in response.text) == (status == 200)


def test_an_altered_token_is_refused(client_of, viewer):
    client = client_of(None)
    client.cookies.set("_token", viewer.cookies["_token"][:-4] + "AAAA")
    assert client.get("/getimg/images/").status_code in (401, 403)


def test_without_a_login_the_page_leads_to_one(client_of):
    page = Html(client_of(None).get("/getimg/images/").text)
    assert any("/auth/" in a["href"] for a in page.all("a"))


def test_an_image_is_sent_as_what_it_is(viewer, path):
    response = viewer.get(path("transfer", 0, "/file"))
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]
    assert "private" in response.headers["cache-control"]
    assert Image.open(io.BytesIO(response.content)).size == (1024, 640)


def test_a_thumbnail_is_small(viewer, path):
    response = viewer.get(path("transfer", 0, "/thumbnail"))
    assert response.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(response.content)).size == (480, 300)


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(4, id="of-another-generation"),
        pytest.param(5, id="of-another-index"),
        pytest.param(6, id="without-metadata"),
        pytest.param(7, id="html"),
        pytest.param(8, id="svg"),
        pytest.param(9, id="no-such-bucket"),
        pytest.param(10, id="no-s3-uri"),
    ],
)
@pytest.mark.parametrize("what", ["/file", "/thumbnail"])
def test_an_object_that_is_not_the_rows_image_is_never_sent(viewer, path, index, what):
    response = viewer.get(path("transfer", index, what))
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def test_a_manifest_without_its_mark_is_not_read(viewer):
    assert Html(viewer.get("/getimg/images/?task=unmarked_manifest").text).all("img") == []


@pytest.mark.parametrize(
    ("task", "index"),
    [("transfer", 99), ("transfer", -1), ("nothing", 0), ("unknown", 0), ("~", 0), ("..", 0)],
)
def test_no_such_image(viewer, path, task, index):
    assert viewer.get(path(task, index)).status_code == 404


@pytest.mark.parametrize("index", range(4))
def test_prompts_are_text(viewer, path, rows, index):
    prompt = rows[index]["request"]["prompt"]
    response = viewer.get(path("transfer", index))
    page = Html(response.text)
    (image,) = page.all("img")
    assert image["alt"] == prompt
    assert [set(script) for script in page.all("script")] == [{"src", "defer"}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<b>9" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_filter_is_text(viewer):
    text = viewer.get("/getimg/images/?model=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>alert" not in text


def test_an_image_links_to_its_neighbours_and_its_log(viewer, path, run_id):
    page = Html(viewer.get(path("batch", 1)).text)
    assert page.link("prev") == path("batch", 0)
    assert page.link("next") == path("batch", 2)
    log = f"/dags/{DAG_ID}/runs/{quote(run_id, safe='')}/tasks/batch"
    assert log in [a["href"] for a in page.all("a")]


def test_nothing_comes_from_elsewhere(viewer, path):
    text = viewer.get("/getimg/images/").text + viewer.get(path("batch", 1)).text
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", text)
    for link in set(re.findall(r"(?:src|href)=\"(/getimg/static/[^\"]+)", text)):
        assert viewer.get(link).status_code == 200


@pytest.mark.parametrize(
    "link", ["/getimg/static/../app.py", "/getimg/static/%2e%2e/app.py", "/getimg/openapi.json"]
)
def test_only_static_files_are_served(viewer, link):
    assert viewer.get(link).status_code == 404
