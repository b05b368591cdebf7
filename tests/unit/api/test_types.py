# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import pickle
from decimal import Decimal

import pytest

from airflow_provider_getimg.api.errors import InvalidInputError, RateLimitError
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.signed_urls import without_query
from airflow_provider_getimg.api.types import Generation, Model

RESPONSE = {
    "id": "img_1",
    "status": "completed",
    "model": "seedream-5-lite",
    "data": [
        {
            "url": "https://api.getimg.ai/v2/downloads/img_1/0?exp=1&sig=ab",
            "mime_type": "image/png",
            "deletes_at": "2030-01-01T00:00:00Z",
            "width": 1024,
            "height": None,
            "blurhash": "new field",
        }
    ],
    "usage": {"total_cost": 0.04, "unit_price": 0.04, "quantity": 1, "billable_unit": "image"},
    "seed": 7,
}


def image(size: int, mime_type: str = "image/png") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(b'x' * size).decode()}"


def test_omitted_fields_are_not_sent():
    assert ImageRequest.checked(model="m", prompt="p").to_json() == {"model": "m", "prompt": "p"}
    assert ImageRequest.checked(model="m", prompt="p", images=[], resolution=None).to_json() == {
        "model": "m",
        "prompt": "p",
    }


def test_given_fields_are_sent_unchanged():
    fields = {
        "model": "m",
        "prompt": "p" * 4096,
        "aspect_ratio": "16:9",
        "resolution": "2K",
        "output_format": "webp",
        "images": [
            {"url": "https://a.test/b.png", "role": "style"},
            {"url": image(3), "role": "reference_image"},
        ],
    }
    assert ImageRequest.checked(**fields).to_json() == fields


def test_role_of_a_reference_defaults_to_reference_image():
    request = ImageRequest.checked(model="m", prompt="p", images=[{"url": "https://a.test/b.png"}])
    assert request.to_json()["images"] == [{"url": "https://a.test/b.png", "role": "reference_image"}]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": ""}, "prompt must not be empty."),
        ({"prompt": " \n"}, r"prompt must not be empty or invisible, got ' \n'."),
        (
            {"prompt": "\u200b\u2060\ufeff\x00\u3164"},
            r"prompt must not be empty or invisible, got '\u200b\u2060\ufeff\x00ㅤ'.",
        ),
        ({"prompt": "half \ud83d"}, r"prompt must be text that can be encoded, got 'half \ud83d'."),
        (
            {"images": [{"url": "https://a.test/\ud83d"}]},
            r"images[0].url must be text that can be encoded, got 'https://a.test/\ud83d'.",
        ),
        ({"prompt": 7}, "prompt must be a string, got 7."),
        ({"prompt": "None"}, "prompt must be a description, got 'None': a template rendered nothing."),
        ({"prompt": "x" * 4097}, "prompt must have at most 4096 characters, got 4097."),
        ({"prompt": None}, "prompt is missing."),
        ({"model": " "}, "model must not be empty or invisible, got ' '."),
        ({"resolution": ""}, "resolution must not be empty."),
        ({"output_format": "gif"}, "output_format must be 'png', 'jpeg' or 'webp', got 'gif'."),
        ({"images": [{"url": "https://a.test"}] * 65}, "images must contain at most 64 images, got 65."),
        ({"images": "https://a.test"}, "images must be a list, got 'https://a.test'."),
        ({"images": ["https://a.test"]}, "images[0] must be a dict, got 'https://a.test'."),
        ({"images": [{"url": None}]}, "images[0].url must be a string, got None."),
        ({"images": [{"url": "https://a.test", "role": ""}]}, "images[0].role must not be empty."),
        ({"images": [{"role": "reference_image"}]}, "images[0].url is missing."),
        ({"images": [{"url": "https://a.test", "roll": "x"}]}, "images[0].roll is not a known field."),
        (
            {"images": [{"url": image(10 * 1024 * 1024 + 1)}]},
            "images[0].url must be an image of at most 10485760 bytes (10 MiB), got 10485761.",
        ),
        (
            {"images": [{"url": "data:image/png;base64,%%"}]},
            "images[0].url must be a data URL with valid base64, got one that can't be decoded.",
        ),
        (
            {"images": [{"url": "data:image/png;base64,AAA\u00e9"}]},
            "images[0].url must be a data URL with valid base64, got one that can't be decoded.",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_image_request_is_rejected_in_one_sentence(fields, sentence):
    with pytest.raises(InvalidInputError) as error:
        ImageRequest.checked(**({"model": "m", "prompt": "p"} | fields))
    assert str(error.value) == f"{sentence} Nothing was billed."


@pytest.mark.parametrize(
    "url", ["iVBORw0KGgo=", image(3, "image/gif"), "http://a.test/b", "ftp://a.test/b?sig=secret"]
)
def test_reference_that_is_not_https_or_a_data_url_is_rejected_without_its_signature(url):
    with pytest.raises(
        InvalidInputError, match=r"^images\[0\]\.url must be an https:// URL, or a data URL .*, got '"
    ) as error:
        ImageRequest.checked(model="m", prompt="p", images=[{"url": url}])
    assert "secret" not in str(error.value)


def test_response_keeps_unknown_fields_and_its_original_json():
    generation = Generation.from_json(RESPONSE)
    assert generation.to_json() == RESPONSE
    assert generation.usage is not None
    assert generation.usage.total_cost == Decimal("0.04")
    assert generation.data[0].blurhash == "new field"


@pytest.mark.parametrize("missing", ["usage", "model"])
def test_response_without_usage_or_model_still_gives_its_files(missing):
    generation = Generation.from_json({name: value for name, value in RESPONSE.items() if name != missing})
    assert generation.data[0].width == 1024


@pytest.mark.parametrize(
    "response",
    [
        {**RESPONSE, "data": []},
        {**RESPONSE, "data": None},
        {**RESPONSE, "data": [{**RESPONSE["data"][0], "url": "file:///etc/passwd"}]},
        {**RESPONSE, "data": [{**RESPONSE["data"][0], "url": "https://"}]},
        [RESPONSE],
    ],
    ids=["no files", "null", "no web address", "no host", "a list"],
)
def test_response_without_a_usable_url_is_rejected(response):
    with pytest.raises(ValueError, match="it "):
        Generation.from_json(response)


FILE = RESPONSE["data"][0]


@pytest.mark.parametrize(
    ("data", "indexes"),
    [
        ([FILE, {"error": {"code": "x"}}], [0]),
        ([None, FILE], [1]),
        ([{**FILE, "url": ""}, FILE, FILE], [1, 2]),
        ([FILE["url"]], [0]),
        (FILE, [0]),
        ({"a": FILE, "b": 1}, [0]),
    ],
    ids=["error", "null", "empty url", "text", "no list", "by name"],
)
def test_unusable_entries_are_reported_and_do_not_hide_other_files(data, indexes):
    generation = Generation.from_json({**RESPONSE, "data": data})
    assert [file.index for file in generation.data] == indexes
    assert {file.url for file in generation.data} == {FILE["url"]}
    lost = set(range(len(data))) - set(indexes) if isinstance(data, list) else set()
    for index in lost:
        assert any(f"data[{index}] has no URL" in oddity for oddity in generation.oddities)


@pytest.mark.parametrize(
    "deletes_at",
    [
        None,
        "some day",
        "Mon, 01 Jan 2029 00:00:00 GMT",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-14:00",
        True,
        {},
    ],
    ids=str,
)
def test_unreadable_expiry_is_none(deletes_at):
    [file] = Generation.from_json({**RESPONSE, "data": [{**FILE, "deletes_at": deletes_at}]}).data
    assert file.deletes_at is None


@pytest.mark.parametrize("cost", [None, "free", -1, True, 1e300, "NaN", [], {}], ids=str)
def test_unreadable_cost_is_none_and_reported(cost):
    generation = Generation.from_json({**RESPONSE, "usage": {"total_cost": cost}})
    assert generation.cost is None
    assert "its cost is not given" in generation.oddities


@pytest.mark.parametrize(
    ("given", "used"),
    [("req-1", "req-1"), (7, "7"), ("a\x1b[2Jb\u202e", "a[2Jb"), (" x\n", "x")],
    ids=["text", "number", "controls", "white space"],
)
def test_id_is_text_without_control_characters(given, used):
    assert Generation.from_json({**RESPONSE, "id": given}).id == used


@pytest.mark.parametrize("given", [None, "", {}, True, "\x00"], ids=str)
def test_response_without_an_id_gets_the_same_generated_id_each_time(given):
    ids = {Generation.from_json({**RESPONSE, "id": given}).id for _ in range(2)}
    assert len(ids) == 1
    assert ids.pop().startswith("no-id-")


def test_long_id_is_shortened_and_stays_unique():
    ids = {Generation.from_json({**RESPONSE, "id": "x" * 5000 + end}).id for end in "ab"}
    assert len(ids) == 2
    assert {len(name) for name in ids} == {128}


def test_model_without_price_rates_is_accepted():
    model = Model.from_json(
        {"id": "m", "name": "M", "type": "image", "pricing": {"currency": "USD", "rates": []}}
    )
    assert model.pricing.rates == []


def test_error_survives_pickling():
    error = RateLimitError("Slow down.", status=429, code="rate_limit", retry_after=3.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RateLimitError
    assert str(copy) == str(error) == "Slow down. Nothing was billed."
    assert (copy.status, copy.code, copy.retry_after, copy.billed) == (429, "rate_limit", 3.5, "no")


def test_query_of_every_url_in_a_text_is_removed():
    text = "see https://a.test/b?sig=1, 's3://c/d?x=2' and <http://e.test#f> but not why?"
    assert (
        without_query(text) == "see https://a.test/b?... 's3://c/d?...' and <http://e.test?...> but not why?"
    )
