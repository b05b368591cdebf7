# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.references import check_references, exceeds_documented_references
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.types import Model


def model(**references: int) -> Model:
    return Model.from_json(
        {
            "id": "m",
            "name": "M",
            "type": "image",
            "pricing": {"currency": "USD", "rates": []},
            "supported_references": references,
        }
    )


def request(count: int, role: str = "reference_image", **others: int) -> ImageRequest:
    images = [
        {"url": "https://a.test/b.png", "role": name}
        for name, number in {role: count, **others}.items()
        for _ in range(number)
    ]
    return ImageRequest.checked(model="m", prompt="p", images=images)


@pytest.mark.parametrize(("count", "asks"), [(0, False), (8, False), (9, True), (64, True)])
def test_more_than_eight_references_exceed_the_documented_limit(count, asks):
    assert exceeds_documented_references(request(count)) is asks


@pytest.mark.parametrize(
    ("references", "asked"),
    [
        ({"reference_image": 10}, request(10)),
        ({"reference_image": 1}, request(0)),
        ({"reference_image": 9, "style": 2}, request(9, style=2)),
        ({}, request(8)),
        ({"style": 1}, request(8)),
    ],
    ids=["more than documented", "none", "two roles", "nothing stated", "not stated for the role"],
)
def test_references_within_the_model_limit_are_accepted(references, asked):
    check_references(model(**references), asked)


@pytest.mark.parametrize(
    ("references", "asked", "sentence"),
    [
        (
            {"reference_image": 2},
            request(3),
            "images must contain at most 2 with the role 'reference_image' for model 'm', got 3.",
        ),
        ({"style": 0}, request(1, "style"), "images must contain at most 0 with the role 'style' for model 'm', got 1."),
        ({}, request(9), "images must contain at most 8 images for model 'm', which has no limit of its own, got 9."),
        ({"reference_image": 10}, request(10, style=1), "images must contain at most 8 images for model 'm', which"),
    ],
    ids=["fewer than documented", "a role that it doesn't take", "nothing stated", "not stated for a role"],
)  # fmt: skip
def test_references_beyond_the_model_limit_are_rejected(references, asked, sentence):
    with pytest.raises(InvalidInputError) as error:
        check_references(model(**references), asked)
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith(" Nothing was billed.")
