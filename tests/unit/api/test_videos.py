# SPDX-License-Identifier: Apache-2.0
"""Video requests, responses and prices."""

from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.pricing import video_price
from airflow_provider_getimg.api.references import check_duration
from airflow_provider_getimg.api.requests import VideoRequest
from airflow_provider_getimg.api.types import Model, Video

FILE = {"url": "https://a.example/0?sig=1", "mime_type": "video/mp4", "duration": 5.0, "has_sound": True}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"duration": "5"}, {"duration": 5}),
        ({"duration": 5.0}, {"duration": 5}),
        ({"sound": "False"}, {"sound": False}),
        ({"sound": True}, {"sound": True}),
        ({"duration": None, "sound": None}, {}),
        (
            {"images": [{"url": "https://a.example/1.png", "role": "first_frame"}]},
            {"images": [{"url": "https://a.example/1.png", "role": "first_frame"}]},
        ),
    ],
)
def test_video_request_is_sent_in_the_api_format(fields, sent):
    base = {"model": "seedance-v1-pro", "prompt": "A fox runs"}
    assert VideoRequest.checked(**base, **fields).to_json() == base | sent


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("duration", 0, "duration must be a whole number of seconds, 1 or more, got 0."),
        ("duration", "2.5", "duration must be a whole number of seconds, 1 or more, got '2.5'."),
        ("duration", True, "duration must be a whole number of seconds, 1 or more, got True."),
        ("duration", "None", "duration must be a whole number of seconds, 1 or more, got 'None'."),
        ("duration", [5], r"duration must be a whole number of seconds, 1 or more, got \[5\]."),
        ("sound", "loud", "sound must be True or False, got 'loud'."),
        ("sound", 1, "sound must be True or False, got 1."),
        ("output_format", "mp4", "output_format is not a known field."),
        ("prompt", "", "prompt must not be empty."),
    ],
)
def test_invalid_video_request_is_rejected_in_one_sentence(field, value, message):
    fields = {"model": "seedance-v1-pro", "prompt": "A fox runs"} | {field: value}
    with pytest.raises(InvalidInputError, match=f"^{message} Nothing was billed.$"):
        VideoRequest.checked(**fields)


@pytest.mark.parametrize("status", ["pending", "queued", None, 7])
def test_video_without_a_final_status_is_still_pending(status):
    video = Video.from_json({"id": "req-1", "status": status})
    assert (video.id, video.is_failed, video.generation) == ("req-1", False, None)


@pytest.mark.parametrize("status", ["completed", "done", "failed"])
def test_response_with_a_file_is_completed_whatever_its_status(status):
    usage = {"total_cost": 0.25, "billable_unit": "video_second"}
    received = {"id": "req-1", "status": status, "model": "m", "data": [FILE], "usage": usage}
    video = Video.from_json(received)
    assert video.generation is not None
    assert not video.is_failed
    assert video.generation.cost == Decimal("0.25")
    assert video.generation.to_json() == received


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ({"code": "moderation", "message": "Refused."}, "moderation: Refused."),
        ({"message": "Refused."}, "Refused."),
        ("Refused.", "Refused."),
        (None, "no reason given"),
        ({"code": 7}, "no reason given"),
    ],
)
def test_failed_video_reports_its_reason(error, failure):
    video = Video.from_json({"id": "req-1", "status": "failed", "error": error})
    assert (video.is_failed, video.failure, video.cost) == (True, failure, None)


@pytest.mark.parametrize(
    ("received", "why"),
    [
        ([], "it is not a JSON object."),
        ({"status": "pending"}, "id\n"),
        ({"id": "", "status": "pending"}, "its id can't be used."),
        ({"id": "a\nb", "status": "pending"}, "its id can't be used."),
        ({"id": "a" * 513, "status": "pending"}, "its id can't be used."),
        ({"id": "req-1", "status": "completed", "data": []}, "it has no file with a URL."),
    ],
    ids=["list", "no id", "empty id", "control", "long", "no file"],
)
def test_video_response_without_a_usable_id_or_file_is_rejected(received, why):
    with pytest.raises(ValueError, match=why):
        Video.from_json(received)


def model(*rates: tuple[str | None, str | None, str], **fields: object) -> Model:
    listed = [
        {"billable_unit": "video_second", "resolution": resolution, "sound": sound, "unit_price": price}
        for resolution, sound, price in rates
    ]
    image = {"billable_unit": "image", "unit_price": "9", "resolution": None, "sound": "not_applicable"}
    pricing = {"currency": "USD", "rates": [image, *listed]}
    return Model.from_json({"id": "v", "name": "V", "type": "video", "pricing": pricing, **fields})


RATES = (
    ("720p", "sound_off", "0.02"),
    ("720p", "sound_on", "0.03"),
    ("1080p", "not_applicable", "0.05"),
    (None, "sound_on", "0.10"),
)


@pytest.mark.parametrize(
    ("resolution", "duration", "sound", "price"),
    [
        ("720p", 5, False, "0.10"),
        ("720p", 5, True, "0.15"),
        ("720p", 5, None, "0.15"),
        ("1080p", 10, True, "0.50"),
        ("1080p", 10, False, "0.50"),
        ("4K", 2, True, "0.20"),
        ("4K", 2, False, None),
        (None, None, False, "0.08"),
    ],
)
def test_video_price_depends_on_resolution_duration_and_sound(resolution, duration, sound, price):
    offered = model(*RATES, supported_resolutions=["720p"], supported_durations=[4.0, 8.0])
    expected = None if price is None else Decimal(price)
    assert video_price(offered, resolution, duration, sound) == expected


def test_unknown_video_price_is_none():
    assert video_price(model(), "720p", 5, sound=True) is None
    # Without a default duration, the length of the video is unknown.
    assert video_price(model(*RATES), "720p", None, sound=True) is None


def test_duration_is_compared_as_a_number_with_those_the_model_supports():
    offered = model(supported_durations=[5.0, 10.0])
    for duration in (5, None):
        check_duration(offered, duration)
    check_duration(model(), 7)
    message = "^duration must be 5, 10 seconds for model 'v', got 7. Nothing was billed.$"
    with pytest.raises(InvalidInputError, match=message):
        check_duration(offered, 7)
