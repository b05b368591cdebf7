# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.transfers.plan import KEY_MAX_BYTES, plan


def answer(id: str = "img_1", files: int = 1, mime_type: str = "image/png", **fields: object) -> dict:
    media = {"url": "https://api.test/f", "mime_type": mime_type, "deletes_at": "2100-01-01T00:00:00Z"}
    return {"id": id, "status": "completed", "model": "seedream-5-lite", "data": [media] * files, **fields}


def keys(generation: object, s3_key: object, s3_bucket: object = "bucket") -> list[str]:
    return [copy.key for copy in plan(generation, s3_key, s3_bucket)]


def test_one_answer_with_two_files_is_two_copies():
    first, second = plan(answer(files=2), "a/{generation_id}-{index}.{extension}", "bucket")
    assert (first.uri, second.uri) == ("s3://bucket/a/img_1-0.png", "s3://bucket/a/img_1-1.png")


def test_the_output_of_a_mapped_task_is_a_list_of_answers():
    assert keys([answer("a"), answer("b")], "{generation_id}") == ["a", "b"]
    assert keys((answer("a"),), "{generation_id}") == ["a"]


@pytest.mark.parametrize(
    ("mime_type", "extension"),
    [
        ("image/jpeg", "jpg"),
        ("image/png", "png"),
        ("image/webp", "webp"),
        ("IMAGE/PNG; q=1", "png"),
        ("image/avif", "avif"),
    ],
)
def test_the_extension_follows_the_mime_type(mime_type, extension):
    assert keys(answer(mime_type=mime_type), "x.{extension}") == [f"x.{extension}"]


def test_placeholders_take_a_format():
    assert keys(answer(files=2), "{model}/{index:03d}") == ["seedream-5-lite/000", "seedream-5-lite/001"]


def test_a_file_may_be_named_by_its_size_in_pixels():
    sized = answer()
    sized["data"] = [{**sized["data"][0], "width": 1536, "height": 1024}]
    assert keys(sized, "{width}x{height}.{extension}") == ["1536x1024.png"]


def test_a_key_made_of_the_content_is_filled_in_once_the_content_is_known():
    first, second = plan(answer(files=2), "by-content/{sha256}.{extension}", "b")
    assert first.keyed_by_content
    assert first.with_content("ab" * 32).key == f"by-content/{'ab' * 32}.png"
    assert second.with_content("ab" * 32).uri == first.with_content("ab" * 32).uri


def test_a_full_uri_names_the_bucket():
    [copy] = plan(answer(), "s3://other/{generation_id}", None)
    assert (copy.bucket, copy.key) == ("other", "img_1")


@pytest.mark.parametrize(
    ("generation", "s3_key", "s3_bucket", "sentence"),
    [
        ([], "k", "b", "generation is an empty list: there is nothing to save."),
        ("{'id': 1}", "k", "b", "generation is a str: the answer of a generation"),
        (None, "k", "b", "generation is a NoneType: "),
        ([answer(), None], "{generation_id}", "b", "generation[1] is a NoneType: "),
        ([{"id": "x"}], "k", "b", "generation[0] is no answer of a generation: data is missing."),
        (answer(), "", "b", "s3_key is '': a key, or a full s3://bucket/key, is allowed"),
        (answer(), None, "b", "s3_key is None: "),
        (answer(), "k", None, "s3_key 'k' and s3_bucket None name no object"),
        (answer(), "images/", "b", "s3_key 'images/' and s3_bucket 'b' name no object"),
        (answer(), "None", "b", "s3_key 'None' and s3_bucket 'b' name no object"),
        (answer(), "a\ud800", "b", "which is no text that can be encoded"),
        (answer(), "s3://b", None, "s3_key 's3://b' and s3_bucket None name no object"),
        (answer(), "s3://b/k", "b", "s3_bucket is 'b' and s3_key names a bucket as well ('s3://b/k')"),
        (
            answer(),
            "{nope}",
            "b",
            "s3_key has the unknown placeholder {nope}: {generation_id}, {index}, {extension}, {model},",
        ),
        (answer(), "{index.__class__}", "b", "s3_key has the unknown placeholder {index.__class__}"),
        (answer(), "{index!r}", "b", "s3_key has the unknown placeholder {index}"),
        (answer(), "{}", "b", "s3_key has the unknown placeholder {}"),
        (
            answer(),
            "{width}",
            "b",
            "s3_key has {width}, which the API did not tell for file 0 of generation img_1.",
        ),
        (answer(), "{sha256:.8}", "b", "s3_key has the unknown placeholder {sha256}"),
        (answer(), "{index:{model}}", "b", "s3_key has the unknown placeholder {index}"),
        (answer(), "{index", "b", "s3_key '{index' can't be filled in"),
        (answer(), "{generation_id:d}", "b", "s3_key '{generation_id:d}' can't be filled in"),
        (answer(), "a/../b", "b", "s3_key gives the key 'a/../b': a key must not climb with '..'."),
        (answer(id=".."), "{generation_id}/x", "b", "s3_key gives the key '../x': a key must not climb"),
        (answer(), "ä" * 513, "b", "s3_key gives a key of 1026 bytes"),
        (
            answer(files=2),
            "same",
            "b",
            "file 0 of generation img_1 and file 1 of generation img_1 the same key 'same'",
        ),
        (
            [answer("a"), answer("b")],
            "{index}",
            "b",
            "file 0 of generation a and file 0 of generation b the same key",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_plan_that_can_t_be_carried_out_is_one_sentence(generation, s3_key, s3_bucket, sentence):
    with pytest.raises(InvalidInputError) as error:
        plan(generation, s3_key, s3_bucket)
    assert sentence in str(error.value)


@given(
    parts=st.lists(
        st.sampled_from(
            ["a", "/", ".", "..", "{", "}", "{index}", "{extension}", "{sha256}", "{x}", "é", ":", "!"]
        )
    ),
    files=st.integers(1, 3),
)
def test_whatever_the_template_a_plan_is_sound_or_refused(parts, files):
    try:
        planned = keys(answer(files=files), "".join(parts))
    except InvalidInputError:
        return
    assert len(planned) == files
    assert len(set(planned)) == files or "{sha256}" in planned[0]
    for key in planned:
        assert key
        assert len(key.encode()) <= KEY_MAX_BYTES
        assert ".." not in key.split("/")
