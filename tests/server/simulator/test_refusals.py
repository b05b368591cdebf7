# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json

import pytest

IMAGES = "/v2/images/generations"
DATA_URL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
PERIOD = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-31T00:00:00Z"}


def reference(url=DATA_URL, **more):
    return {"url": url, "role": "reference_image", **more}


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]


def test_error_body_is_the_documented_one_including_its_doc_url(simulator):
    response = simulator.post(resolution="4K")
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "Unsupported resolution '4K' for model 'seedream-5-lite'.",
            "type": "invalid_request_error",
            "param": "resolution",
            "code": "invalid_parameter",
            "doc_url": "https://docs.getimg.ai/guides/errors#invalid_parameter",
        }
    }


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": "x"}, "parameter_missing", "model"),
        ({"model": "seedream-5-lite"}, "parameter_missing", "prompt"),
        ({"model": 5, "prompt": "x"}, "invalid_parameter", "model"),
        ({"model": "nope", "prompt": "x"}, "invalid_parameter", "model"),
        ({"model": "\ud800", "prompt": "x"}, "invalid_parameter", "model"),
        ({"model": "seedance-v1-pro", "prompt": "x"}, "invalid_parameter", "model"),
        ({"model": "seedream-5-lite", "prompt": None}, "invalid_parameter", "prompt"),
        ({"model": "seedream-5-lite", "prompt": ""}, "invalid_parameter", "prompt"),
        ({"model": "seedream-5-lite", "prompt": "x" * 4097}, "invalid_parameter", "prompt"),
        ({"model": "seedream-5-lite", "prompt": "\ud800"}, "invalid_parameter", "prompt"),
        ({"model": "seedream-5-lite", "prompt": "x", "seed": 1}, "invalid_parameter", "seed"),
        (
            {"model": "seedream-5-lite", "prompt": "x", "aspect_ratio": "5:1"},
            "invalid_parameter",
            "aspect_ratio",
        ),
        (
            {"model": "sketch-mini", "prompt": "x", "aspect_ratio": "16:9"},
            "invalid_parameter",
            "aspect_ratio",
        ),
        ({"model": "seedream-5-lite", "prompt": "x", "resolution": 1}, "invalid_parameter", "resolution"),
        (
            {"model": "seedream-5-lite", "prompt": "x", "output_format": "jpg"},
            "invalid_parameter",
            "output_format",
        ),
        ([], "invalid_parameter", None),
    ],
    ids=lambda value: None if isinstance(value, dict | list) else str(value),
)
def test_invalid_request_is_rejected_naming_the_parameter_and_is_not_billed(simulator, body, code, param):
    response = simulator.http.post(IMAGES, content=json.dumps(body))
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert simulator.balance() == "100.00"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"model":' + b"9" * 5000 + b"}"])
def test_malformed_json_is_rejected(simulator, body):
    response = simulator.http.post(IMAGES, content=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_parameter"
    assert simulator.last()["outcome"] == "refused"


def test_prompt_of_4096_characters_is_accepted(simulator):
    assert simulator.post(prompt="x" * 4096).status_code == 200


@pytest.mark.parametrize(
    ("images", "code", "param"),
    [
        ([{"role": "reference_image"}], "parameter_missing", "images[0].url"),
        ([reference(), reference(url="iVBORw0KGgo=")], "invalid_parameter", "images[1].url"),
        ([reference(url="http://example.com/a.png")], "invalid_parameter", "images[0].url"),
        ([reference(url="https://")], "invalid_parameter", "images[0].url"),
        ([reference(url="https://[")], "invalid_parameter", "images[0].url"),
        ([reference(url="ftp://127.0.0.1/a.png")], "invalid_parameter", "images[0].url"),
        ([reference(url="data:image/gif;base64,R0lG")], "invalid_parameter", "images[0].url"),
        ([reference(url="data:image/png,abc")], "invalid_parameter", "images[0].url"),
        ([reference(url="data:image/png;base64,?")], "invalid_parameter", "images[0].url"),
        ([reference(url="data:image/png;base64,")], "invalid_parameter", "images[0].url"),
        ([reference(url=5)], "invalid_parameter", "images[0].url"),
        ([reference(role="first_frame")], "invalid_parameter", "images[0].role"),
        ([reference(role=None)], "invalid_parameter", "images[0].role"),
        ([reference(weight=1)], "invalid_parameter", "images[0].weight"),
        ([reference()] * 9, "invalid_parameter", "images"),
        (["https://example.com/a.png"], "invalid_parameter", "images[0]"),
        ({}, "invalid_parameter", "images"),
        (None, "invalid_parameter", "images"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_invalid_reference_image_is_rejected_naming_the_parameter(simulator, images, code, param):
    response = simulator.post(images=images)
    assert response.status_code == 400
    assert (error_of(response)["code"], error_of(response)["param"]) == (code, param)


@pytest.mark.parametrize(
    "images",
    [
        [],
        [reference()] * 8,
        [{"url": DATA_URL}],
        [reference(url="https://example.com/a.png")],
        [reference(url="http://127.0.0.1:1/a.png")],
        [reference(url="http://localhost/a.png")],
        [reference(url=DATA_URL.replace("png", "jpeg")), reference(url=DATA_URL.replace("png", "webp"))],
    ],
    ids=["none", "eight", "no role", "https", "loopback", "localhost", "formats"],
)
def test_valid_reference_images_are_accepted(simulator, images):
    assert simulator.post(images=images).status_code == 200


def test_number_of_reference_images_is_limited_by_the_model(simulator):
    assert simulator.post(model="atelier-pro", images=[reference()] * 4).status_code == 200
    assert error_of(simulator.post(model="atelier-pro", images=[reference()] * 5))["param"] == "images"
    assert error_of(simulator.post(model="sketch-mini", images=[reference()]))["param"] == "images[0].role"


def test_reference_image_must_be_at_most_10_mib(simulator):
    def data_url(size):
        return "data:image/png;base64," + base64.b64encode(bytes(size)).decode()

    assert simulator.post(images=[reference(url=data_url(10 * 2**20))]).status_code == 200
    response = simulator.post(images=[reference(url=data_url(10 * 2**20 + 1))])
    assert response.status_code == 400
    assert error_of(response)["param"] == "images[0].url"


def test_request_body_must_be_at_most_25_mib(simulator):
    body = b'{"model": "seedream-5-lite", "prompt": "x"}'
    largest = body.ljust(25 * 2**20)
    assert simulator.http.post(IMAGES, content=largest).status_code == 200
    response = simulator.http.post(IMAGES, content=largest + b" ")
    assert response.status_code == 413
    assert "25 MiB" in error_of(response)["message"]
    assert simulator.last()["status"] == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", IMAGES),
        ("POST", "/v2/videos/generations"),
        ("GET", "/v2/videos/generations/1"),
        ("GET", "/v2/models"),
        ("GET", "/v2/models/seedream-5-lite"),
        ("GET", "/v2/billing/balance"),
        ("GET", "/v2/billing/costs"),
    ],
)
@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer sk_wrong", "Bearer", "Basic sk_for_tests", "sk_for_tests", b"Bearer \xe9"],
    ids=["none", "wrong", "empty", "basic", "bare", "not ASCII"],
)
def test_every_api_endpoint_requires_a_valid_key(simulator, method, path, authorization):
    # The body is invalid too: the key is checked first.
    response = simulator.http.request(method, path, headers={"Authorization": authorization}, content=b"{")
    assert response.status_code == 401
    assert response.json() == {
        "error": {
            "message": "Missing or invalid API key.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
            "doc_url": "https://docs.getimg.ai/guides/errors#invalid_api_key",
        }
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "Much GORE, please"}, "prompt"),
        ({"images": [reference(), reference(url="https://example.com/nsfw_1.png")]}, "images[1].url"),
    ],
    ids=["prompt", "reference image"],
)
def test_blocked_word_in_a_prompt_or_image_url_is_rejected_and_not_billed(simulator, fields, param):
    response = simulator.post(**fields)
    assert response.status_code == 422
    assert (error_of(response)["code"], error_of(response)["param"]) == ("content_policy_violation", param)
    assert simulator.balance() == "100.00"


def test_blocked_word_inside_a_longer_word_is_accepted(simulator):
    assert simulator.post(prompt="a gorePhone in Gorenje").status_code == 200


def test_blocked_words_option_replaces_the_default_words(start):
    with start("--blocked-words", "tulip, Rose") as simulator:
        assert simulator.post(prompt="a red rose").status_code == 422
        assert simulator.post(prompt="gore").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/images/generations", 405),
        ("POST", "/v2/models", 405),
        ("DELETE", "/v2/videos/generations", 405),
        ("GET", "/v2/videos/generations/vid_1", 404),
        ("GET", "/docs", 404),
    ],
)
def test_unknown_path_or_method_gets_a_json_error(simulator, method, path, status):
    response = simulator.http.request(method, path)
    assert response.status_code == status
    assert error_of(response)["message"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"start": None}, "parameter_missing", "start"),
        ({"end": None}, "parameter_missing", "end"),
        ({"start": "yesterday"}, "invalid_parameter", "start"),
        ({"start": "2026-01-01T00:00:00"}, "invalid_parameter", "start"),
        ({"start": "0001-01-01T00:00:00+14:00"}, "invalid_parameter", "start"),
        ({"end": "2026-01-30"}, "invalid_parameter", "end"),
        ({"end": PERIOD["start"]}, "invalid_parameter", "end"),
        ({"end": "2026-06-30T00:00:01Z"}, "invalid_parameter", "end"),
    ],
    ids=str,
)
def test_invalid_cost_period_is_rejected_naming_the_parameter(simulator, change, code, param):
    query = {name: value for name, value in {**PERIOD, **change}.items() if value is not None}
    response = simulator.http.get("/v2/billing/costs", params=query)
    assert response.status_code == 400
    assert (error_of(response)["code"], error_of(response)["param"]) == (code, param)


def test_cost_period_of_180_days_is_accepted(simulator):
    query = {**PERIOD, "end": "2026-06-30T00:00:00Z"}
    assert simulator.http.get("/v2/billing/costs", params=query).status_code == 200
