# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from botocore.handlers import VALID_S3_ARN
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.s3.keys import (
    KEY_MAX_BYTES,
    PLACEHOLDERS,
    KeyTemplate,
    check_key,
    clean_value,
    numbered,
)

VALUES = {
    "generation_id": "img_1",
    "index": 7,
    "extension": "png",
    "model": "seedream-5-lite",
    "width": 1536,
    "height": 1024,
    "sha256": "ab" * 32,
}


def render(s3_key: object, s3_bucket: object = "bucket", **values: object) -> str:
    template = KeyTemplate.parse(s3_key, s3_bucket)
    template.check_names(PLACEHOLDERS)
    return template.render(VALUES | values)


@pytest.mark.parametrize(
    ("s3_key", "key"),
    [
        ("a.png", "a.png"),
        ("a/{generation_id}-{index}.{extension}", "a/img_1-7.png"),
        ("{model}/{index:03d}", "seedream-5-lite/007"),
        ("{width}x{height}.{extension}", "1536x1024.png"),
        ("{index:>4}{index:<255}", "   7" + "7" + " " * 254),
        ("by-content/{sha256}", f"by-content/{'ab' * 32}"),
        ("{{{index}}}", "{7}"),
        ("/a", "/a"),
        ("a//b", "a//b"),
        ("a/...", "a/..."),
        ("図/👩‍🎨.png", "図/👩‍🎨.png"),
        ("x" * 1024, "x" * 1024),
    ],
)
def test_template_is_rendered_as_a_key(s3_key, key):
    assert render(s3_key) == key


def test_template_has_its_bucket_and_placeholders():
    template = KeyTemplate.parse("s3://other/{index}/{model}-{index}", None)
    assert (template.bucket, template.render(VALUES)) == ("other", "7/seedream-5-lite-7")
    assert template.names == {"index", "model"}


def test_uri_with_an_access_point_names_it_before_its_first_slash():
    template = KeyTemplate.parse("k", "arn:aws:s3:us-east-1:123456789012:accesspoint/mine")
    bucket = f"s3://{template.bucket}/k".removeprefix("s3://").partition("/")[0]
    assert VALID_S3_ARN.match(bucket)


def test_uri_that_ends_the_arn_of_an_access_point_before_its_name_is_rejected():
    arn = "arn:aws:s3:us-east-1:123456789012:accesspoint"
    assert KeyTemplate.parse(f"s3://{arn}:mine/k", None).bucket == f"{arn}:mine"
    with pytest.raises(InvalidInputError, match=r"^An access point's ARN must end with a colon"):
        KeyTemplate.parse(f"s3://{arn}/mine/k", None)


@pytest.mark.parametrize(
    ("s3_key", "folder"),
    [
        ("a/b/{index}/c", "a/b"),
        ("a/b-{index}", "a"),
        ("{index}/a", ""),
        ("a.png", ""),
        ("a/b/c.png", "a/b"),
        ("/a", ""),
        ("a{{/b/{index}", "a{/b"),
    ],
)
def test_shared_folder_is_the_path_before_the_first_placeholder(s3_key, folder):
    assert KeyTemplate.parse(s3_key, "bucket").shared_folder == folder


@pytest.mark.parametrize(
    ("s3_key", "s3_bucket", "sentence"),
    [
        ("", "b", "s3_key must be a key or a full s3://bucket/key, such as"),
        (None, "b", "got None."),
        (b"a", "b", "got b'a'."),
        ("k", None, "must name a bucket and an object, or s3_key alone a full s3://bucket/key, got s3_key 'k' and"),
        ("images/", "b", "got s3_key 'images/' and s3_bucket 'b'."),
        ("None", "b", "got s3_key 'None' and s3_bucket 'b'."),
        ("k", "None", "got s3_key 'k' and s3_bucket 'None'."),
        ("k", "b/folder", "got s3_key 'k' and s3_bucket 'b/folder'."),
        ("s3://b", None, "got s3_key 's3://b' and s3_bucket None."),
        ("s3://b/k", "b", "s3_bucket must be left out where s3_key names the bucket itself ('s3://b/k'), got 'b'."),
        ("{nope}", "b", "s3_key has the unknown placeholder '{nope}'. Known placeholders: {generation_id}, {index}, "),
        ("{}", "b", "s3_key has the unknown placeholder '{}'."),
        ("{index.__class__}", "b", "must be a name, with at most a format such as {index:03d}, got '{index.__class__}'."),
        ("{index[0]}", "b", "got '{index[0]}'."),
        ("{index!r}", "b", "got '{index!r}'."),
        ("{index:{model}}", "b", "got '{index:{model}}'."),
        ("{sha256:.8}", "b", "{sha256} in s3_key must have no format, got '{sha256:.8}'."),
        ("{index:>2000000000}", "b", "at most 255 characters, got '{index:>2000000000}'."),
        ("{index:.256f}", "b", "at most 255 characters, got '{index:.256f}'."),
        ("{index:>٣٠٠}", "b", "at most 255 characters, got "),
        ("{index:>" + "9" * 5000 + "}", "b", "at most 255 characters, got "),
        ("{index", "b", "s3_key must write placeholders as {name}, and literal braces as {{ and }}, got '{index'."),
        ("a}", "b", "got 'a}'."),
        ("{index!}", "b", "got '{index!}'."),
        ("{generation_id:d}", "b", "s3_key has {generation_id:d}, which can't format 'img_1'."),
        ("{model:}", "b", None),
        ("a/../b", "b", "s3_key gives the key 'a/../b': no part of a key between slashes may be '.' or '..'."),
        ("./a", "b", "s3_key gives the key './a': no part"),
        ("a/.", "b", "s3_key gives the key 'a/.': no part"),
        ("a\nb", "b", r"s3_key gives the key 'a\nb', which contains control characters."),
        ("a\x1b[31m", "b", "which contains control characters."),
        ("a\x7f", "b", "which contains control characters."),
        ("a\x85b", "b", "which contains control characters."),
        ("a\u2028b", "b", "which contains control characters."),
        ("a\u202egnp.exe", "b", "which contains control characters."),
        ("a\ud800", "b", "which can't be encoded as UTF-8."),
        ("ä" * 513, "b", "s3_key gives a key of 1026 bytes ('" + "ä" * 59 + "...): S3 allows at most 1024."),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_invalid_s3_key_or_bucket_is_rejected(s3_key, s3_bucket, sentence):
    if sentence is None:
        assert render(s3_key, s3_bucket)
        return
    with pytest.raises(InvalidInputError) as error:
        render(s3_key, s3_bucket)
    assert sentence in str(error.value)
    assert str(error.value).endswith(". Nothing was billed.")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (None, "s3_key has {model}, which has no value."),
        ("..", "s3_key gives the key 'a/..': no part"),
        ("", "s3_key gives the key 'a/', which names a folder, not an object."),
        ("b/", "s3_key gives the key 'a/b/', which names a folder, not an object."),
        ("x\0", r"s3_key gives the key 'a/x\x00', which contains control characters."),
        (10**5000, "s3_key has {model}, which can't format <int>."),
    ],
    ids=["none", "climbs", "empty", "folder", "NUL", "endless"],
)
def test_value_that_makes_the_key_invalid_is_rejected(model, sentence):
    with pytest.raises(InvalidInputError) as error:
        render("a/{model}", model=model)
    assert sentence in str(error.value)


def test_number_too_large_for_a_character_format_is_rejected():
    with pytest.raises(InvalidInputError, match=r"s3_key has {index:c}, which can't format 1099511627776\."):
        render("{index:c}", index=2**40)


def test_parsed_template_is_checked_against_the_given_placeholder_names():
    template = KeyTemplate.parse("{sku}", "b")
    template.check_names(["sku"])
    with pytest.raises(InvalidInputError, match=r"unknown placeholder '{sku}'\. Known placeholders: {row}\."):
        template.check_names(["row"])


def test_error_names_the_parameter_that_gave_the_invalid_key():
    with pytest.raises(InvalidInputError, match=r"^manifest_key gives the key 'a/'"):
        check_key("a/", "manifest_key")


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("img_1", "img_1"),
        ("a/b\\c", "a-b-c"),
        ("a\x1b\n\u202eb", "a---b"),
        ("..", "-"),
        (".", "-"),
        ("", "unknown"),
        (" ", "unknown"),
        (None, "unknown"),
        ("half \ud83d", "half -"),
        ("x" * 9999, "x" * 128),
    ],
    ids=ascii,
)
def test_response_value_is_cleaned_for_use_in_a_key(value, cleaned):
    assert clean_value(value) == cleaned


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b.png", "a/b-1.png"),
        ("a.d/b", "a.d/b-1"),
        ("a/.b", "a/.b-1"),
        ("b." + "c" * 17, "b." + "c" * 17 + "-1"),
        ("ä" * 510 + ".png", "ä" * 509 + "-1.png"),
    ],
    ids=lambda value: value[-12:],
)
def test_number_is_added_to_a_key_before_its_extension(key, expected):
    assert numbered(key, 1) == expected


TEXT = st.text() | st.sampled_from(["", ".", "..", "/", "a/", "\0", "\ud800", "x" * 2000])
FRAGMENTS = (
    "a", "/", ".", "..", "{", "}", "{{", "{index}", "{model}", "{index:", "{model:", "{width:", "03d", "!r", "{x}", "%", "c",
    "e", "10", "999999999", ":", "=", ",", "[0]", ".5", "é", "\x1b", "s3://",
)  # fmt: skip
TEMPLATES = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5)).map("".join)


@settings(deadline=None)
@given(
    template=TEMPLATES,
    model=TEXT,
    index=st.integers() | st.floats(),
    width=st.none() | st.integers() | st.decimals(),
)
def test_any_template_gives_a_valid_key_or_is_rejected(template, model, index, width):
    refused = None
    try:
        key = render(template, model=model, index=index, width=width)
    except InvalidInputError as error:
        refused = str(error)
    if refused is None:
        check_key(key)
        assert 0 < len(key.encode()) <= KEY_MAX_BYTES
    else:
        assert "\x1b" not in refused


@settings(deadline=None)
@given(value=TEXT, index=st.integers(0, 10**9), folder=st.sampled_from(["", "a/", "a.b/", "x" * 1023 + "/"]))
def test_any_response_value_makes_a_valid_key(value, index, folder):
    cleaned = clean_value(value)
    check_key(f"a/{cleaned}")
    check_key(numbered(f"{folder}{cleaned}", index))
