# SPDX-License-Identifier: Apache-2.0
"""The gallery in Airflow's own API app: who sees what, and what is never shown."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
from html import unescape
from html.parser import HTMLParser
from urllib.parse import parse_qsl, quote, urlencode

import httpx
import pytest
from PIL import Image

from airflow_provider_getimg.plugin import objects, thumbnails
from airflow_provider_getimg.version_compat import SORTS_XCOMS
from tests.server.plugin.conftest import DAG_ID, ODD_TASK
from tests.support.marks import LISTS


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


@LISTS
def test_the_newest_24_and_then_the_older_ones(viewer):
    seen, url = [], "/getimg/images/"
    while url:
        page = Html(viewer.get(url).text)
        pictures = [shown["src"] for shown in page.all("img") + page.all("video")]
        assert len(pictures) <= 24
        seen += pictures
        url = page.link("next")
    assert len(seen) == len(set(seen)) == 47
    assert any(f"/{task}/" in seen[0] for task in ("transfer", "batch", "odd_numbers", quote(ODD_TASK)))


@LISTS
@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("dag=gallery", 24),
        ("dag=another", 0),
        ("task=transfer", 12),
        ("task=batch&map_index=-1", 24),
        ("model=seedream-5-lite", 16),
        ("model=unknown", 0),
        ("day=2026-01-02", 0),
        ("task=transfer&map_index=3", 0),
        ("start=1.2.3.4", 0),
        ("start=junk", 24),
    ],
)
def test_filters(viewer, query, count):
    response = viewer.get(f"/getimg/images/?{query}")
    assert response.status_code == 200
    page = Html(response.text)
    assert len(page.all("img") + page.all("video")) == count


@LISTS
def test_a_task_is_named_with_its_map_index_if_it_is_mapped(viewer):
    assert "Of the task batch." in viewer.get("/getimg/images/?task=batch&map_index=-1").text
    assert "Of the task batch, map index 3." in viewer.get("/getimg/images/?task=batch&map_index=3").text


@LISTS
@pytest.mark.parametrize("query", ["day=yesterday", "run=..", "task=~"])
def test_a_filter_that_names_nothing_is_refused(viewer, query):
    assert viewer.get(f"/getimg/images/?{query}").status_code in (400, 404)


@LISTS
@pytest.mark.parametrize("username", ["somebody", "only-another"])
@pytest.mark.parametrize("dag", ["galery", "..", "a/b", "~"])
def test_a_dag_that_is_mistyped_can_be_corrected(client_of, username, dag):
    response = client_of("viewer", username).get(f"/getimg/images/?dag={dag}")
    assert response.status_code == 200
    assert "There is no such DAG or run, or you may not read its XComs." in response.text
    assert [field["value"] for field in Html(response.text).all("input") if field["name"] == "dag"]


@pytest.mark.skipif(SORTS_XCOMS, reason="before Airflow 3.2")
@pytest.mark.parametrize("name", ["images", "spend"])
def test_a_list_says_which_airflow_it_needs(viewer, name):
    response = viewer.get(f"/getimg/{name}/")
    assert response.status_code == 501
    assert "This page needs Airflow 3.2 or newer, this is Airflow 3.1." in response.text


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403), ("viewer", 200), ("admin", 200)])
def test_airflow_decides_who_sees_an_image(client_of, path, what, role, status):
    assert client_of(role).get(path("transfer", 0, what)).status_code == status


@LISTS
@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403), ("viewer", 200)])
def test_airflow_decides_who_sees_the_list(client_of, role, status):
    response = client_of(role).get("/getimg/images/")
    assert response.status_code == status
    assert ("s3://" in response.text or "<li>" in response.text) == (status == 200)


@LISTS
@pytest.mark.parametrize("seen_by_another", [False, True])
def test_the_list_leaves_out_a_dag_whose_xcoms_may_not_be_read(
    client_of, viewer, plugin_state, monkeypatch, seen_by_another
):
    monkeypatch.setattr(plugin_state.gallery, "_values", objects.Cache(2**20))
    if seen_by_another:
        assert Html(viewer.get("/getimg/images/").text).all("img")
    # Airflow itself lists them.
    entries = "/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries?xcom_key=getimg_images"
    client = client_of("viewer", "no-xcoms-of-gallery")
    assert client.get(entries).json()["total_entries"] > 0
    response = client.get("/getimg/images/")
    assert response.status_code == 200
    assert "picture 0" not in response.text
    assert not Html(response.text).all("img")
    other = client_of("viewer", "no-xcoms-of-another").get("/getimg/images/")
    assert len(Html(other.text).all("img") + Html(other.text).all("video")) == 24


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_an_image_of_a_dag_whose_xcoms_may_not_be_read_is_refused(client_of, viewer, path, what):
    # What it needs is kept from this.
    assert viewer.get(path("transfer", 0, what)).status_code == 200
    client = client_of("viewer", "no-xcoms-of-gallery")
    assert client.get(path("transfer", 0, what)).status_code == 403


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
    # An image has no parts.
    assert "accept-ranges" not in response.headers
    assert Image.open(io.BytesIO(response.content)).size == (1024, 640)


def test_a_thumbnail_is_small(viewer, path):
    response = viewer.get(path("transfer", 0, "/thumbnail"))
    assert response.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(response.content)).size == (480, 300)


def test_an_image_too_large_for_a_thumbnail_has_none(viewer, path, plugin_state, monkeypatch):
    monkeypatch.setattr(plugin_state.gallery, "_thumbnails", objects.Cache(2**20))
    monkeypatch.setattr(thumbnails, "_MAX_PIXELS", 1024 * 640 - 1)
    for _ in range(2):
        assert viewer.get(path("transfer", 0, "/thumbnail")).status_code == 404
    assert viewer.get(path("transfer", 0, "/file")).status_code == 200


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
        pytest.param(11, id="of-another-dag"),
    ],
)
@pytest.mark.parametrize("what", ["/file", "/thumbnail"])
def test_an_object_that_is_not_the_rows_image_is_never_sent(viewer, path, index, what):
    response = viewer.get(path("transfer", index, what))
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def played(viewer, path, wanted: str, index: int = 0):
    return viewer.get(path("videos", index, "/file"), headers={"range": wanted})


def test_a_video_is_played(viewer, path):
    page = Html(viewer.get(path("videos", 0)).text)
    [video] = page.all("video")
    assert (video["aria-label"], page.all("img")) == ("A fox runs", [])
    response = viewer.get(path("videos", 0))
    assert "media-src 'self'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-", 0, None),
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, None),
        ("bytes=5-99999999999", 5, None),
    ],
)
def test_a_player_gets_the_part_that_it_wants(viewer, path, clip, wanted, first, last):
    response = played(viewer, path, wanted)
    content = clip[first:] if last is None else clip[first : last + 1]
    assert (response.status_code, response.content) == (206, content)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-range"] == f"bytes {first}-{first + len(content) - 1}/{len(clip)}"
    assert response.headers["content-type"] == "video/mp4"
    assert "sandbox" in response.headers["content-security-policy"]


@pytest.mark.parametrize("wanted", ["bytes=-100", "bytes=0-1,3-4", "lines=1-2", ""])
def test_another_range_is_ignored(viewer, path, clip, wanted):
    response = played(viewer, path, wanted)
    assert (response.status_code, response.content) == (200, clip)
    assert response.headers["content-type"] == "video/mp4"


def test_a_long_video_is_sent_in_parts(viewer, path, clip):
    size, parts = len(clip) + 5 * 1024 * 1024, b""
    while len(parts) < size:
        response = played(viewer, path, f"bytes={len(parts)}-", index=1)
        assert response.status_code == 206
        assert 0 < len(response.content) <= 4 * 1024 * 1024
        parts += response.content
    assert parts == clip + bytes(5 * 1024 * 1024)


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=9-3"])
def test_a_video_has_no_such_part(viewer, path, wanted):
    assert played(viewer, path, wanted).status_code == 416


@pytest.mark.parametrize("wanted", ["", "bytes=0-", "bytes=9-"])
def test_what_is_no_video_is_never_sent(viewer, path, wanted):
    response = played(viewer, path, wanted, index=2)
    assert response.status_code == 404
    assert "alert" not in response.text


@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403)])
def test_airflow_decides_who_plays_a_video(client_of, path, role, status):
    assert played(client_of(role), path, "bytes=0-").status_code == status


@pytest.mark.parametrize("task", ["unmarked_manifest", "another_s_manifest"])
def test_a_manifest_that_its_task_did_not_write_is_not_read(viewer, path, task):
    assert viewer.get(path(task, 0)).status_code == 404
    assert viewer.get(path(task, 0, "/file")).status_code == 404


def test_what_is_no_number_spoils_no_page(viewer, path):
    response = viewer.get(path("odd_numbers", 0))
    assert response.status_code == 200
    assert not {"Cost", "Size", "Pixels"} & set(re.findall(r"<dt>(\w+)</dt>", response.text))


def test_a_long_video_is_sent_whole_to_who_wants_no_part(viewer, path, clip):
    # Airflow 3.2 would compress it.
    response = viewer.get(path("videos", 1, "/file"), headers={"accept-encoding": "identity"})
    assert response.status_code == 200
    assert response.headers["content-length"] == str(len(response.content))
    assert response.content == clip + bytes(5 * 1024 * 1024)


def test_a_store_that_is_silent_leaves_airflow_s_api_its_threads(
    airflow_app, plugin_state, viewer, path, monkeypatch, caplog
):
    """More requests than AnyIO has threads wait for S3, while Airflow's own API responds."""
    # What was made of the connection before, and what was returned, is not to help.
    monkeypatch.setattr(plugin_state.gallery, "_objects", objects.Objects())
    monkeypatch.setattr(
        objects, "_CONFIG", objects.Config(connect_timeout=1, read_timeout=1, retries={"max_attempts": 1})
    )
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(
            "AIRFLOW_CONN_AWS_GALLERY",
            json.dumps(
                {"conn_type": "aws", "login": "x", "password": "y", "extra": {"endpoint_url": endpoint}}
            ),
        )

        async def ask() -> tuple[list[int], float]:
            transport = httpx.ASGITransport(app=airflow_app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://testserver", cookies=dict(viewer.cookies)
            ) as client:
                pending = [
                    asyncio.create_task(client.get(path("transfer", 0, "/thumbnail"))) for _ in range(48)
                ]
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                health = await client.get("/api/v2/monitor/health")
                still = sum(not task.done() for task in pending)
                for task in pending:
                    task.cancel()
                return [health.status_code, *(task.result().status_code for task in done)], still

        statuses, still = asyncio.run(ask())
    assert set(statuses) == {200, 404}
    assert still
    assert (
        "The gallery can't read objects in bucket 'gallery' with the AWS connection 'aws_gallery'"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("task", "index"),
    [("transfer", 99), ("transfer", -1), ("nothing", 0), ("unknown", 0), ("~", 0), ("..", 0)],
)
def test_no_such_image(viewer, path, task, index):
    assert viewer.get(path(task, index)).status_code == 404


@pytest.mark.parametrize("map_index", ["-2", "2147483648", "1" * 5000, "one"])
@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_what_is_no_map_index_is_not_found(viewer, run_id, map_index, what):
    response = viewer.get(f"/getimg/images/{DAG_ID}/{quote(run_id, safe='')}/transfer/{map_index}/0{what}")
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "images/"),
        ("images", "images/"),
        ("images?dag=a%0d%0ab", "images/?dag=a%0d%0ab"),
        ("spend", "spend/"),
    ],
)
def test_a_path_that_is_too_short_leads_to_a_page_of_the_same_host(viewer, path, target):
    response = viewer.get(f"/getimg/{path}", headers={"host": "evil.example"}, follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["location"] == target


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_a_path_that_is_too_long_is_not_found(viewer, path, what):
    response = viewer.get(path("transfer", 0, f"{what}/"), follow_redirects=False)
    assert response.status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("page", ["", "images/", "spend/", "static/gallery.css"])
def test_pages_are_only_read(viewer, method, page):
    response = viewer.request(method, f"/getimg/{page}")
    assert response.status_code == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_images_are_only_read(viewer, path, method, what):
    response = viewer.request(method, path("transfer", 0, what))
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("index", range(4))
def test_prompts_are_text(viewer, path, rows, index):
    prompt = rows[index]["request"]["prompt"]
    response = viewer.get(path("transfer", index))
    page = Html(response.text)
    (image,) = page.all("img")
    assert image["alt"] == prompt
    heading = unescape(re.search(r'<h1 dir="auto">(.*)</h1>', response.text)[1])
    assert heading == prompt if len(prompt) < 120 else len(heading) == 120
    assert ("<dt>Prompt</dt>" in response.text) == (heading != prompt)
    assert [set(script) for script in page.all("script")] == [{"src"}, {"src", "defer"}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<b>9" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_no_name_runs_or_splits_a_header(viewer, path, hostile, what):
    response = viewer.get(path(quote(ODD_TASK), 0, what))
    assert response.status_code == 200
    assert "x-split" not in response.headers
    if what:
        return
    assert "<script>alert" not in response.text
    assert hostile["uri"] == unescape(re.search(r'<code id="uri">(.*)</code>', response.text)[1])
    [(name, text)] = hostile["request"]["labels"].items()
    assert f"<dt>{name}</dt>" in unescape(response.text)
    assert f'<dd dir="auto">{text}</dd>' in unescape(response.text)
    # To its log, in Airflow.
    assert f"tasks/{quote(ODD_TASK)}" in response.text
    assert {link["href"].partition("/")[0] for link in Html(response.text).all("a")} == {""}


@LISTS
def test_a_list_is_filtered_by_odd_names(viewer, hostile):
    names = {"task": ODD_TASK, "model": hostile["model"]}
    response = viewer.get(f"/getimg/images/?{urlencode(names)}")
    [image] = Html(response.text).all("img")
    assert image["alt"] == hostile["request"]["prompt"]
    [model] = [field["value"] for field in Html(response.text).all("input") if field["name"] == "model"]
    assert model == hostile["model"]
    assert "<script>alert" not in response.text
    # The link back to this list, which the image's page makes of what it was given.
    [link] = [one["href"] for one in Html(response.text).all("a") if "back=" in one["href"]]
    up = Html(viewer.get(link).text).link("up")
    assert dict(parse_qsl(up.partition("?")[2])) == names


@LISTS
def test_in_a_list_a_long_prompt_is_cut(viewer):
    images = Html(viewer.get("/getimg/images/?task=transfer").text).all("img")
    assert max(len(image["alt"]) for image in images) == 200


@LISTS
@pytest.mark.parametrize(
    ("page", "current"), [("images/", "Images"), ("spend/", "Spend"), ("images/?day=no", None)]
)
def test_the_menu_says_which_page_it_is(viewer, page, current):
    text = viewer.get(f"/getimg/{page}").text
    assert re.findall(r'aria-current="page">(\w+)<', text) == ([current] if current else [])
    # One of no links would be announced.
    assert not re.findall(r"<nav[^>]*>\s*</nav>", text)


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
