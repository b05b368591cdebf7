# SPDX-License-Identifier: Apache-2.0
"""What a reviewer sees of a run's images before they are published."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
from markdown_it import MarkdownIt

from airflow_provider_getimg import review
from airflow_provider_getimg.manifests import ManifestLine
from airflow_provider_getimg.review import images_markdown, saved_images
from tests.conftest import REPOSITORY

RUN = "manual__2026-01-01T00:00:00+00:00"
ISOLATES = str.maketrans("", "", "\u2068\u2069")


class TaskInstance:
    """The part of a task instance that is used: the XComs of a run's tasks, by map index."""

    dag_id = "a dag"
    run_id = RUN
    task_id = "review"

    def __init__(self, values: dict[int, Any], instances: int = 1) -> None:
        self.values = values
        self.instances = instances
        self.task_ids = {"group.save": values}

    def xcom_pull(self, task_ids: str, map_indexes: Any = -1) -> Any:
        values = self.task_ids[task_ids]
        if isinstance(map_indexes, int):
            return values.get(map_indexes)
        return [values.get(index) for index in map_indexes]

    def get_ti_count(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> int:
        assert (dag_id, task_ids, run_ids) == ("a dag", ["group.save"], [RUN])
        return self.instances


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"uri": f"s3://b/{name}", "request": {"prompt": name}, "aws_conn_id": "aws_other"} | fields


def shown(prompt: str) -> tuple[str, list[Any]]:
    """Return the text shown for a prompt, and the Markdown tokens."""
    markdown = images_markdown(TaskInstance({-1: [row("a", request={"prompt": prompt})]}), "group.save")
    blocks = MarkdownIt("commonmark").parse(markdown)
    assert [block.type for block in blocks] == ["paragraph_open", "inline", "paragraph_close"] * 2
    first, second = (block.children for block in blocks if block.type == "inline")
    [image] = [token for token in second if token.type == "image"]
    assert image.content == "Image 1"
    inside = first[[token.type for token in first].index("link_open") :]
    assert {token.type for token in inside} <= {"link_open", "text", "text_special", "link_close"}
    return "".join(token.content for token in inside).translate(ISOLATES), [*first, *second]


def test_images_of_a_transfer_are_listed_with_their_gallery_pages():
    images = saved_images(TaskInstance({-1: [row("a"), row("c/d.png")]}), "group.save")
    assert [(image.number, image.prompt, image.aws_conn_id) for image in images] == [
        (1, "a", "aws_other"),
        (2, "c/d.png", "aws_other"),
    ]
    assert [(image.uri, image.bucket, image.key) for image in images] == [
        ("s3://b/a", "b", "a"),
        ("s3://b/c/d.png", "b", "c/d.png"),
    ]
    folder = "/getimg/images/a%20dag/manual__2026-01-01T00%3A00%3A00%2B00%3A00/group.save/-1"
    assert [image.page for image in images] == [f"{folder}/0", f"{folder}/1"]


def test_images_of_a_mapped_transfer_keep_their_map_indexes():
    ti = TaskInstance({0: [row("a")], 2: [row("b"), row("c")]}, instances=3)
    images = saved_images(ti, "group.save")
    assert [image.number for image in images] == [1, 2, 3]
    assert [image.page.split("group.save/")[1] for image in images] == ["0/0", "2/0", "2/1"]


def test_images_of_a_batch_are_read_from_its_manifest(monkeypatch):
    lines = [
        ManifestLine(0, "saved", {"prompt": "a"}, "s3://b/a-0", ("s3://b/a-0", "s3://b/a-1")),
        ManifestLine(1, "failed", {"prompt": "b"}),
        ManifestLine(2, "reused", {"prompt": "c"}, "s3://b/c", ("s3://b/c",)),
    ]
    monkeypatch.setattr(review, "read_manifest", lambda *asked: lines if asked == ("s3://b/m", "aws") else 1)
    ti = TaskInstance({-1: {"manifest": "s3://b/m", "aws_conn_id": "aws"}})
    images = saved_images(ti, "group.save")
    assert [(image.number, image.uri, image.prompt) for image in images] == [
        (1, "s3://b/a-0", "a"),
        (2, "s3://b/a-1", "a"),
        (3, "s3://b/c", "c"),
    ]
    assert [image.page.rpartition("/")[2] for image in images] == ["0", "1", "2"]
    assert {image.aws_conn_id for image in images} == {"aws"}


def test_row_that_the_gallery_cannot_show_does_not_shift_the_other_pages():
    old = row("a")
    del old["aws_conn_id"]
    [image] = saved_images(TaskInstance({-1: [old, row("b")]}), "group.save")
    assert (image.number, image.uri) == (1, "s3://b/b")
    assert image.page.endswith("/1")


@pytest.mark.parametrize("value", [None, [], {}, 7, [None, {"uri": 1}]], ids=repr)
def test_output_without_images_gives_an_empty_list_and_a_message(value):
    ti = TaskInstance({-1: value})
    assert saved_images(ti, "group.save") == []
    assert images_markdown(ti, "group.save") == r"group\.save saved no images."


@pytest.mark.parametrize(
    ("base_url", "prefix"),
    [
        ("", ""),
        ("http://localhost:8080", ""),
        ("https://airflow.example/team/a", "/team/a"),
        ("https://airflow.example/team/a/", "/team/a"),
    ],
    ids=["none", "host", "prefix", "prefix-with-slash"],
)
def test_links_omit_the_host_and_keep_the_path_prefix(monkeypatch, base_url, prefix):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    page = f"{prefix}/getimg/images/a%20dag/manual__2026-01-01T00%3A00%3A00%2B00%3A00/group.save/-1/0"
    _, tokens = shown("a fox")
    assert [token.attrs["href"] for token in tokens if token.type == "link_open"] == [page, page]
    assert [token.attrs["src"] for token in tokens if token.type == "image"] == [f"{page}/thumbnail"]


@pytest.mark.parametrize(
    "prompt",
    [
        "](https://evil.example) ![x](https://evil.example/a.png)",
        "`code` ``` *bold* _it_ ~~no~~ # | a | b |",
        "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;b&gt; &#60;",
        r"\] \\ \[ trailing \\",
        "see https://evil.example/a?b=c and www.evil.example and a@evil.example",
        "{{ var.value.secret }} {% raw %}",
        "1. one - two + three",
        "ثعلب أحمر (red) في الثلج",
        "two 🦊🦊 foxes",
    ],
)
def test_prompt_is_shown_literally(prompt):
    text, _ = shown(prompt)
    assert text == prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a\n\n# b\r\n\tc", "a # b c"),
        ("a\u202eb\u2069c\u2068d\x00e\ud800f", "abcd ef"),
        ("x" * 300, "x" * 300),
        ("]`<\\" * 1024, ("]`<\\" * 1024)[:300] + "…"),
        (" \n ", "Image 1"),
        ("", "Image 1"),
        (7, "Image 1"),
    ],
    ids=["newlines", "controls", "just-short", "4096-characters", "blank", "empty", "no-text"],
)
def test_prompt_is_shown_as_one_short_line(prompt, expected):
    text, _ = shown(prompt)
    assert text == expected


def test_right_to_left_prompt_is_isolated_from_the_text_around_it():
    markdown = images_markdown(TaskInstance({-1: [row("a", request={"prompt": "ثعلب"})]}), "group.save")
    assert re.match(r"\*\*1\.\*\* \[\u2068ثعلب\u2069\]\(/getimg", markdown)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "dags" / "getimg_review_before_publish.py"))


def answered(example: dict[str, Any], answer: Any) -> list[list[int]]:
    ti = TaskInstance({-1: [row("a"), row("b"), row("c")]})
    ti.task_ids = {"save_to_s3": ti.values, "review": {-1: answer}}
    return [[image.number for image in images] for images in example["by_answer"](ti)]


@pytest.mark.parametrize(
    ("option", "params", "expected"),
    [
        ("Approve", {}, [[1, 2, 3], []]),
        ("Approve", {"leave_out": None}, [[1, 2, 3], []]),
        ("Approve", {"leave_out": ["2"]}, [[1, 3], [2]]),
        ("Approve", {"leave_out": [1, 2, 3]}, [[], [1, 2, 3]]),
        ("Reject", {"leave_out": ["2"]}, [[], [1, 2, 3]]),
    ],
    ids=["no-form", "nothing-left-out", "one-left-out", "all-left-out", "reject"],
)
def test_example_separates_approved_images_from_the_others(example, option, params, expected):
    assert answered(example, {"chosen_options": [option], "params_input": params}) == expected


def test_example_approves_no_image_without_a_review_response(example):
    assert answered(example, None) == [[], [1, 2, 3]]


def test_example_rejects_an_image_number_that_does_not_exist(example):
    with pytest.raises(ValueError, match="There are 3 images, and no number 4"):
        answered(example, {"chosen_options": ["Approve"], "params_input": {"leave_out": ["4"]}})
