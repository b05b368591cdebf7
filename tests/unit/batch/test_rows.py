# SPDX-License-Identifier: Apache-2.0
"""Rows: invalid input is rejected before anything is billed, and nothing is rejected afterwards."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.types import Generation
from airflow_provider_getimg.batch.requests_file import MAX_REQUESTS
from airflow_provider_getimg.batch.rows import Row, read_rows
from airflow_provider_getimg.s3.keys import KEY_MAX_BYTES, KeyTemplate, check_key


def no_s3() -> Any:
    raise AssertionError("S3 was asked")


def read(requests: object, s3_key: object = "s3://b/{row}.{extension}", **defaults: Any) -> list[Row]:
    return read_rows(
        requests, {"model": "m", "prompt": "A fox"} | defaults, KeyTemplate.parse(s3_key, None), no_s3
    )


def key(s3_key: str, **fields: Any) -> str | None:
    [row] = read([fields], f"s3://b/{s3_key}")
    return row.expected_key


def refusal(requests: object, s3_key: object = "s3://b/{row}.{extension}", **defaults: Any) -> str:
    with pytest.raises(InvalidInputError) as error:
        read(requests, s3_key, **defaults)
    return error.value.message


def response(files: int = 1, **fields: Any) -> dict[str, Any]:
    media = {"url": "https://api.test/f", "mime_type": "image/jpeg", "deletes_at": "2100-01-01T00:00:00Z"}
    return {"id": "img_1", "status": "completed", "model": "m", "data": [media] * files} | fields


class Colour(StrEnum):
    RED = "red"


class NotATime(datetime.datetime):
    """Like pandas' NaT."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False


class TestLabel:
    @pytest.mark.parametrize(
        ("value", "plain"),
        [
            ("A-17", "A-17"),
            (Colour.RED, "red"),
            (7, 7),
            (2**63 - 1, 2**63 - 1),
            (uuid.UUID(int=2**127).int, str(2**127)),
            (1.5, 1.5),
            (Decimal("12.50"), "12.50"),
            (Decimal(7), 7),
            (Decimal("1E+3"), "1E+3"),
            (datetime.date(2026, 1, 2), "2026-01-02"),
            (datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), "2026-01-02T03:04:00+00:00"),
            (datetime.time(3, 4), "03:04:00"),
            (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
            (None, ""),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_may_have_the_types_that_databases_return(self, value, plain):
        [row] = read([{"labels": {"x": value}}], "s3://b/a-{x}.jpg")
        assert row.expected_key == f"a-{plain}.jpg"
        assert row.redacted()["labels"] == {"x": plain}
        assert type(row.redacted()["labels"]["x"]) is type(plain)
        assert json.loads(json.dumps(row.redacted())) == row.redacted()

    @pytest.mark.parametrize(
        "value",
        [
            True,
            float("nan"),
            float("-inf"),
            Decimal("NaN"),
            Decimal("sNaN"),
            Decimal("Infinity"),
            Decimal("1E+999999"),
            10**5000,
            b"A-17",
            ["A-17"],
            {"a": 1},
            Fraction(1, 3),
            datetime.timedelta(1),
            NotATime(2026, 1, 2),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_value_of_an_unsupported_type_is_rejected_with_its_row_and_name(self, value):
        assert refusal([{}, {"labels": {"sku": "A-17", "size": value}}]).startswith(
            "requests[1]: labels['size'] must be a string, a finite number, a date, a time, a UUID or None, got "
        )

    def test_each_row_without_a_label_that_the_key_uses_is_reported(self):
        requests = [{"labels": {"sku": "A-17"}}, {"labels": {"sku": "B-2"}}, {}, {"labels": {"SKU": "x"}}]
        assert refusal(requests, "s3://b/{sku}.jpg") == (
            "requests[2] has no label 'sku', which s3_key uses. requests[3] has no label 'sku', which s3_key uses."
        )

    def test_label_that_no_row_has_is_an_unknown_placeholder(self):
        assert refusal([{"labels": {"sku": 1}}], "s3://b/{extention}") == (
            "s3_key has the unknown placeholder '{extention}'. Known placeholders: {generation_id}, {index}, {extension}, "
            "{model}, {width}, {height}, {sha256}, {prompt}, {aspect_ratio}, {resolution}, {output_format}, {row}, {sku}."
        )

    def test_default_label_applies_to_rows_without_their_own(self):
        rows = read([{}, {"labels": {"size": 2}}], "s3://b/{sku}-{size}.jpg", labels={"sku": "A", "size": 1})
        assert [row.expected_key for row in rows] == ["A-1.jpg", "A-2.jpg"]

    @pytest.mark.parametrize(
        ("labels", "sentence"),
        [
            ("sku", "requests[0]: labels must be a dict of your own names, such as {'sku': 'A-17'}, got 'sku'."),
            ([], "requests[0]: labels must be a dict of your own names"),
            ({5: "x"}, "requests[0]: The name of a label must be a printable string, got 5."),
            ({"a\x1b": "x"}, r"requests[0]: The name of a label must be a printable string, got 'a\x1b'."),
            ({"row": 1}, "requests[0]: labels must not contain 'row', which is a built-in placeholder."),
            ({"images": 1}, "requests[0]: labels must not contain 'images', which is a built-in placeholder."),
        ],
        ids=lambda value: repr(value)[:30],
    )  # fmt: skip
    def test_invalid_labels_and_reserved_names_are_rejected(self, labels, sentence):
        assert refusal([{"labels": labels}]).startswith(sentence)


class TestKey:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [({}, "jpg"), ({"output_format": "png"}, "png"), ({"output_format": "webp"}, "webp")],
        ids=["default", "png", "webp"],
    )
    @pytest.mark.parametrize(
        "said", ["image/png", "image/jpeg", "image/webp", "image/avif", "text/html", None]
    )
    def test_has_the_extension_of_the_requested_format_whatever_the_response_declares(
        self, fields, expected, said
    ):
        [row] = read([fields])
        [copy] = row.items(
            Generation.from_json(response(data=[{"url": "https://api.test/f", "mime_type": said}]))
        )
        assert copy.key == row.expected_key == f"0.{expected}"

    @pytest.mark.parametrize(
        ("s3_key", "fields", "given"),
        [
            ("{row}.png", {}, "'jpeg', the default, got '0.png'."),
            ("{row}.PNG", {"output_format": "jpeg"}, "'jpeg', got '0.PNG'."),
            ("{row}.jpg", {"output_format": "png"}, "'png', got '0.jpg'."),
            ("{row}.jpeg", {"output_format": "webp"}, "'webp', got '0.jpeg'."),
            ("{file}", {"labels": {"file": "a.webp"}}, "'jpeg', the default, got 'a.webp'."),
            ("{sha256}.png", {}, "'jpeg', the default, got '" + "0" * 59 + "...."),
        ],
    )
    def test_extension_of_another_format_is_rejected(self, s3_key, fields, given):
        message = refusal([fields], f"s3://b/{s3_key}")
        assert message.startswith("requests[0]: s3_key must end in {extension}, or in .")
        assert message.endswith(given)

    @pytest.mark.parametrize(
        ("s3_key", "fields"),
        [
            ("{row}.JPG", {}),
            ("{row}.jpeg", {"output_format": "jpeg"}),
            ("{row}.png", {"output_format": "png"}),
            ("{row}.webp", {"output_format": "webp"}),
            ("{row}", {}),
            ("png", {}),
            ("{row}.v2", {}),
            ("a.png/{row}", {}),
        ],
    )
    def test_matching_or_unrelated_extension_is_accepted(self, s3_key, fields):
        assert key(s3_key, **fields)

    @pytest.mark.parametrize(
        ("label", "why"),
        [
            ("a\nb", "which contains control characters."),
            ("\u202eb", "which contains control characters."),
            ("a/../b", "no part of a key between slashes may be '.' or '..'."),
            ("./a", "no part of a key between slashes may be '.' or '..'."),
            (None, "which names a folder, not an object."),
            ("x" * 1025, "S3 allows at most 1024."),
        ],
        ids=ascii,
    )
    def test_label_that_makes_the_key_invalid_is_rejected(self, label, why):
        message = refusal([{"labels": {"x": label}}], "s3://b/{x}")
        assert message.startswith("requests[0]: s3_key gives ")
        assert message.endswith(why)

    def test_key_that_two_rows_share_is_rejected(self):
        assert refusal([{}, {}], "s3://b/{width}.jpg").startswith(
            "s3_key gives rows 0 and 1 the same key '99999.jpg': distinguish them with {row}, "
        )

    def test_expected_key_is_set_unless_it_depends_on_the_response(self):
        [row] = read(
            [{"prompt": "p", "resolution": "2K"}], "s3://b/{model}/{prompt}-{resolution}-{row:03}.jpg"
        )
        assert row.expected_key == row.expected_item().key == "m/p-2K-000.jpg"
        [row] = read([{}], "s3://b/{generation_id}")
        assert row.expected_key is None

    def test_template_is_parsed_once_for_all_rows(self):
        first, second = read([{}, {}])
        assert first.template is second.template


class TestAfterPayment:
    @pytest.mark.parametrize(
        ("s3_key", "fields", "expected"),
        [
            ("{generation_id}", {"id": "a/../b\\c\x1b"}, "a-..-b-c"),
            ("{generation_id}/x", {"id": ".."}, "-/x"),
            ("{width}x{height}-{row}.jpg", {}, "unknownxunknown-0.jpg"),
            ("{width:05d}-{row}.jpg", {}, "unknown-0.jpg"),
            ("{model}-{row}.jpg", {"model": "../other"}, "m-0.jpg"),
        ],
        ids=["slashes", "climbs", "no size", "no size to format", "another model"],
    )
    def test_unusual_response_still_gets_a_valid_key(self, s3_key, fields, expected):
        [row] = read([{}], f"s3://b/{s3_key}")
        assert [copy.key for copy in row.items(Generation.from_json(response(**fields)))] == [expected]

    def test_key_that_the_response_makes_too_long_is_shortened(self):
        room = KEY_MAX_BYTES - 28 - 8 - 1
        [row] = read([{}], "s3://b/" + "x" * room + "{generation_id}-{index}{width}")
        keys = [copy.key for copy in row.items(Generation.from_json(response(12, id="ä" * 128)))]
        assert len(set(keys)) == 12
        for made in keys:
            check_key(made)

    def test_several_files_of_one_row_get_different_keys(self):
        [row] = read([{}])
        assert [copy.key for copy in row.items(Generation.from_json(response(3)))] == [
            "0.jpg",
            "0-1.jpg",
            "0-2.jpg",
        ]

    def test_item_carries_the_prompt_and_request_hashes_of_its_row(self):
        [row] = read([{}])
        [copy] = row.items(Generation.from_json(response()))
        assert copy.prompt_sha256 == row.prompt_sha256
        assert copy.request_sha256 == row.request.fingerprint

    @settings(deadline=None)
    @given(
        s3_key=st.lists(
            st.sampled_from(["{generation_id}", "{width}", "{height:04}", "{index}", "{row}", "{sha256}", "/", "a", ".", "..", "é"])
            | st.sampled_from(["{generation_id:.1}", "{width:c}", "{model}", "{extension}", "x" * 1000]),
            min_size=1,
        ).map("".join),
        id=st.text() | st.integers(),
        size=st.none() | st.integers() | st.text() | st.floats(),
        files=st.integers(1, 3),
    )  # fmt: skip
    def test_any_response_gives_valid_distinct_keys(self, s3_key, id, size, files):
        try:
            [row] = read([{}], f"s3://b/{s3_key}")
        except InvalidInputError:
            return
        media = {"url": "https://api.test/f", "width": size, "height": size}
        copies = row.items(Generation.from_json(response(id=id, data=[media] * files)))
        keys = [copy.key or copy.with_key("ab" * 32, "image/avif").key for copy in copies]
        assert len(keys) == files
        assert len(set(keys)) == files or "{sha256}" in s3_key
        for made in keys:
            check_key(made)


class TestInvalidInput:
    def test_invalid_rows_after_the_third_are_only_counted(self):
        message = refusal([{"prompt": ""}] * 5)
        assert message.count("prompt must not be empty.") == 3
        assert message.endswith(" And 2 more.")

    def test_list_with_too_many_requests_is_rejected(self):
        assert refusal([{}] * (MAX_REQUESTS + 1)) == "requests must have at most 100000 entries, got 100001."

    def test_many_invalid_rows_are_rejected_quickly(self):
        began = time.process_time()
        assert refusal([{"prompt": ""}] * MAX_REQUESTS).endswith(" And 99997 more.")
        assert time.process_time() - began < 10

    @pytest.mark.parametrize(
        ("requests", "sentence"),
        [
            ("rows", "requests must be a list of dicts, or the s3://bucket/key of a JSON Lines file, got 'rows'. Pass"),
            (b"rows", "requests must be a list of dicts, or the s3://bucket/key of a JSON Lines file, got b'rows'. Pass"),
            (None, "requests must be a list of dicts, or the s3://bucket/key of a JSON Lines file, got None. Pass"),
            (["x"], "requests[0] must be a dict with at least model and prompt, got 'x'."),
            ([{"promt": 1}], "requests[0]: 'promt' is not a known field. Known fields: model, prompt, "),
            ([{"images": ["gs://b/k"]}], "requests[0]: images[0] must be an https:// URL, the s3://bucket/key of an"),
        ],
        ids=lambda value: repr(value)[:30],
    )  # fmt: skip
    def test_invalid_requests_are_rejected(self, requests, sentence):
        assert refusal(requests).startswith(sentence)

    @pytest.mark.parametrize(
        ("defaults", "sentence"),
        [
            ("x", "defaults must be a dict of the fields that the requests share, got 'x'."),
            ({"modl": "m"}, "defaults: 'modl' is not a known field."),
            ({"labels": {"x": True}}, "defaults: labels['x'] must be"),
        ],
        ids=["no dict", "unknown field", "label"],
    )
    def test_invalid_defaults_are_rejected(self, defaults, sentence):
        with pytest.raises(InvalidInputError) as error:
            read_rows([], defaults, KeyTemplate.parse("s3://b/{row}", None), no_s3)
        assert error.value.message.startswith(sentence)


@pytest.mark.parametrize("s3_key", ["s3://b/{row}", "s3://b/{sku}.jpg"])
def test_empty_request_list_needs_no_labels(s3_key):
    assert read([], s3_key) == []
