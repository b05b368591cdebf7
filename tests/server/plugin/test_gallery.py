# SPDX-License-Identifier: Apache-2.0
"""The gallery in Airflow's API app: who sees what, and what is never shown."""

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
    """Collects the tags of a page."""

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
def test_list_shows_each_image_once_on_pages_of_at_most_24(viewer):
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
def test_list_shows_only_images_that_match_its_query(viewer, query, count):
    response = viewer.get(f"/getimg/images/?{query}")
    assert response.status_code == 200
    page = Html(response.text)
    assert len(page.all("img") + page.all("video")) == count


@LISTS
def test_list_of_a_task_names_the_map_index_only_if_the_task_is_mapped(viewer):
    assert "Only task batch." in viewer.get("/getimg/images/?task=batch&map_index=-1").text
    assert "Only task batch, map index 3." in viewer.get("/getimg/images/?task=batch&map_index=3").text


@LISTS
@pytest.mark.parametrize("query", ["day=yesterday", "run=..", "task=~"])
def test_invalid_filter_is_rejected(viewer, query):
    assert viewer.get(f"/getimg/images/?{query}").status_code in (400, 404)


@LISTS
@pytest.mark.parametrize("username", ["somebody", "only-another"])
@pytest.mark.parametrize("dag", ["galery", "..", "a/b", "~"])
def test_unknown_dag_shows_an_explanation_and_the_filter_form(client_of, username, dag):
    response = client_of("viewer", username).get(f"/getimg/images/?dag={dag}")
    assert response.status_code == 200
    assert "There is no such DAG or run, or you may not read its XComs." in response.text
    shown = [field["value"] for field in Html(response.text).all("input") if field["name"] == "dag"]
    assert shown == [dag]


@pytest.mark.skipif(SORTS_XCOMS, reason="before Airflow 3.2")
@pytest.mark.parametrize("name", ["images", "spend"])
def test_list_page_names_the_airflow_version_that_it_needs(viewer, name):
    response = viewer.get(f"/getimg/{name}/")
    assert response.status_code == 501
    assert "This page needs Airflow 3.2 or newer; this is Airflow 3.1." in response.text


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
def test_list_omits_a_dag_whose_xcoms_the_user_may_not_read(
    client_of, viewer, plugin_state, monkeypatch, seen_by_another
):
    monkeypatch.setattr(plugin_state.gallery, "_values", objects.Cache(2**20))
    if seen_by_another:
        assert Html(viewer.get("/getimg/images/").text).all("img")
    # Airflow's own API lists its XComs to this user.
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
def test_image_of_a_dag_whose_xcoms_the_user_may_not_read_is_forbidden(client_of, viewer, path, what):
    # Fill the caches that the next request would use.
    assert viewer.get(path("transfer", 0, what)).status_code == 200
    client = client_of("viewer", "no-xcoms-of-gallery")
    assert client.get(path("transfer", 0, what)).status_code == 403


def test_altered_token_is_rejected(client_of, viewer):
    client = client_of(None)
    client.cookies.set("_token", viewer.cookies["_token"][:-4] + "AAAA")
    assert client.get("/getimg/images/").status_code in (401, 403)


def test_page_without_a_login_links_to_the_login_page(client_of):
    page = Html(client_of(None).get("/getimg/images/").text)
    assert any("/auth/" in a["href"] for a in page.all("a"))


def test_image_file_is_sent_with_its_content_type_and_security_headers(viewer, path):
    response = viewer.get(path("transfer", 0, "/file"))
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]
    assert "private" in response.headers["cache-control"]
    # Only videos are sent in parts.
    assert "accept-ranges" not in response.headers
    assert Image.open(io.BytesIO(response.content)).size == (1024, 640)


def test_thumbnail_is_a_webp_image_480_pixels_wide(viewer, path):
    response = viewer.get(path("transfer", 0, "/thumbnail"))
    assert response.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(response.content)).size == (480, 300)


def test_image_with_too_many_pixels_has_a_file_but_no_thumbnail(viewer, path, plugin_state, monkeypatch):
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
def test_object_that_is_not_the_image_of_its_row_is_not_sent(viewer, path, index, what):
    response = viewer.get(path("transfer", index, what))
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def played(viewer, path, wanted: str, index: int = 0):
    return viewer.get(path("videos", index, "/file"), headers={"range": wanted})


def test_video_page_has_a_player_that_its_security_policy_permits(viewer, path):
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
def test_range_request_gets_the_requested_part_of_a_video(viewer, path, clip, wanted, first, last):
    response = played(viewer, path, wanted)
    content = clip[first:] if last is None else clip[first : last + 1]
    assert (response.status_code, response.content) == (206, content)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-range"] == f"bytes {first}-{first + len(content) - 1}/{len(clip)}"
    assert response.headers["content-type"] == "video/mp4"
    assert "sandbox" in response.headers["content-security-policy"]


@pytest.mark.parametrize("wanted", ["bytes=-100", "bytes=0-1,3-4", "lines=1-2", ""])
def test_unsupported_range_is_ignored_and_the_whole_video_is_sent(viewer, path, clip, wanted):
    response = played(viewer, path, wanted)
    assert (response.status_code, response.content) == (200, clip)
    assert response.headers["content-type"] == "video/mp4"


def test_open_ended_range_of_a_long_video_is_sent_in_parts_of_at_most_4_mib(viewer, path, clip):
    size, parts = len(clip) + 5 * 1024 * 1024, b""
    while len(parts) < size:
        response = played(viewer, path, f"bytes={len(parts)}-", index=1)
        assert response.status_code == 206
        assert 0 < len(response.content) <= 4 * 1024 * 1024
        parts += response.content
    assert parts == clip + bytes(5 * 1024 * 1024)


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=9-3"])
def test_range_that_selects_no_bytes_gets_status_416(viewer, path, wanted):
    assert played(viewer, path, wanted).status_code == 416


@pytest.mark.parametrize("wanted", ["", "bytes=0-", "bytes=9-"])
def test_object_that_is_not_a_video_is_not_sent(viewer, path, wanted):
    response = played(viewer, path, wanted, index=2)
    assert response.status_code == 404
    assert "alert" not in response.text


@pytest.mark.parametrize(("role", "status"), [(None, 401), ("", 403)])
def test_airflow_decides_who_plays_a_video(client_of, path, role, status):
    assert played(client_of(role), path, "bytes=0-").status_code == status


@pytest.mark.parametrize("task", ["unmarked_manifest", "another_s_manifest"])
def test_manifest_that_its_task_did_not_write_is_not_read(viewer, path, task):
    assert viewer.get(path(task, 0)).status_code == 404
    assert viewer.get(path(task, 0, "/file")).status_code == 404


def test_invalid_numbers_are_omitted_from_the_image_page(viewer, path):
    response = viewer.get(path("odd_numbers", 0))
    assert response.status_code == 200
    assert not {"Cost", "Size", "Pixels"} & set(re.findall(r"<dt>(\w+)</dt>", response.text))


def test_long_video_is_sent_whole_without_a_range(viewer, path, clip):
    # Otherwise Airflow 3.2 compresses the response.
    response = viewer.get(path("videos", 1, "/file"), headers={"accept-encoding": "identity"})
    assert response.status_code == 200
    assert response.headers["content-length"] == str(len(response.content))
    assert response.content == clip + bytes(5 * 1024 * 1024)


def test_unresponsive_store_is_logged_and_does_not_block_the_airflow_api(
    airflow_app, plugin_state, viewer, path, monkeypatch, caplog
):
    """Airflow's API responds while more requests than AnyIO has threads wait for S3."""
    # A cached S3 client would reach the real store, and a fault that was already logged would not be logged again.
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
def test_unknown_image_is_not_found(viewer, path, task, index):
    assert viewer.get(path(task, index)).status_code == 404


@pytest.mark.parametrize("map_index", ["-2", "2147483648", "1" * 5000, "one"])
@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_invalid_map_index_gets_a_404_page_with_security_headers(viewer, run_id, map_index, what):
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
def test_incomplete_path_redirects_to_a_page_on_the_same_host(viewer, path, target):
    response = viewer.get(f"/getimg/{path}", headers={"host": "evil.example"}, follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["location"] == target


@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_image_path_with_a_trailing_slash_is_not_found(viewer, path, what):
    response = viewer.get(path("transfer", 0, f"{what}/"), follow_redirects=False)
    assert response.status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("page", ["", "images/", "spend/", "static/gallery.css"])
def test_pages_reject_methods_that_write(viewer, method, page):
    response = viewer.request(method, f"/getimg/{page}")
    assert response.status_code == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("what", ["", "/file", "/thumbnail"])
def test_images_reject_methods_that_write(viewer, path, method, what):
    response = viewer.request(method, path("transfer", 0, what))
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("index", range(4))
def test_prompts_and_labels_are_escaped_on_the_image_page(viewer, path, rows, index):
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
def test_hostile_names_neither_run_as_script_nor_split_a_header(viewer, path, hostile, what):
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
    # The link to the task's log in Airflow.
    assert f"tasks/{quote(ODD_TASK)}" in response.text
    assert {link["href"].partition("/")[0] for link in Html(response.text).all("a")} == {""}


@LISTS
def test_filters_with_special_characters_find_their_image_and_survive_the_link_back(viewer, hostile):
    names = {"task": ODD_TASK, "model": hostile["model"]}
    response = viewer.get(f"/getimg/images/?{urlencode(names)}")
    [image] = Html(response.text).all("img")
    assert image["alt"] == hostile["request"]["prompt"]
    [model] = [field["value"] for field in Html(response.text).all("input") if field["name"] == "model"]
    assert model == hostile["model"]
    assert "<script>alert" not in response.text
    # The image's page builds the link back to this list from the link that led to it.
    [link] = [one["href"] for one in Html(response.text).all("a") if "back=" in one["href"]]
    up = Html(viewer.get(link).text).link("up")
    assert dict(parse_qsl(up.partition("?")[2])) == names


@LISTS
def test_long_prompt_is_truncated_to_200_characters_in_a_list(viewer):
    images = Html(viewer.get("/getimg/images/?task=transfer").text).all("img")
    assert max(len(image["alt"]) for image in images) == 200


@LISTS
@pytest.mark.parametrize(
    ("page", "current"), [("images/", "Images"), ("spend/", "Spend"), ("images/?day=no", None)]
)
def test_menu_marks_the_current_page(viewer, page, current):
    text = viewer.get(f"/getimg/{page}").text
    assert re.findall(r'aria-current="page">(\w+)<', text) == ([current] if current else [])
    # Screen readers would announce an empty `nav`.
    assert not re.findall(r"<nav[^>]*>\s*</nav>", text)


def test_filter_value_is_escaped(viewer):
    text = viewer.get("/getimg/images/?model=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>alert" not in text


def test_image_page_links_to_its_neighbors_and_its_log(viewer, path, run_id):
    page = Html(viewer.get(path("batch", 1)).text)
    assert page.link("prev") == path("batch", 0)
    assert page.link("next") == path("batch", 2)
    log = f"/dags/{DAG_ID}/runs/{quote(run_id, safe='')}/tasks/batch"
    assert log in [a["href"] for a in page.all("a")]


def test_pages_refer_to_no_other_host_and_only_to_existing_static_files(viewer, path):
    text = viewer.get("/getimg/images/").text + viewer.get(path("batch", 1)).text
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", text)
    for link in set(re.findall(r"(?:src|href)=\"(/getimg/static/[^\"]+)", text)):
        assert viewer.get(link).status_code == 200


@pytest.mark.parametrize(
    "link", ["/getimg/static/../app.py", "/getimg/static/%2e%2e/app.py", "/getimg/openapi.json"]
)
def test_source_files_and_the_openapi_schema_are_not_served(viewer, link):
    assert viewer.get(link).status_code == 404
