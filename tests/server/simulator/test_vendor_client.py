# SPDX-License-Identifier: Apache-2.0
"""The vendor's published client, a second reading of the contract, must work unchanged in its strict mode."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime, timedelta

import getimg
import pytest
from PIL import Image


@pytest.fixture
def client(simulator):
    with getimg.GetimgAI(
        api_key=simulator.api_key, base_url=simulator.url, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_client_generates_an_image_that_downloads_in_the_announced_size(simulator, client):
    response = client.images.generate(
        model="seedream-5-lite",
        prompt="A watercolor painting of a mountain village at dawn",
        aspect_ratio="16:9",
        resolution="2K",
        output_format="png",
        images=[{"url": "https://example.com/reference.png"}],
    )
    (item,) = response.data
    assert (response.id, response.status, response.usage.total_cost) == (
        simulator.last()["id"],
        "completed",
        0.04,
    )
    assert item.deletes_at > datetime.now(UTC)
    picture = Image.open(io.BytesIO(simulator.keyless.get(item.url).content))
    assert picture.size == (item.width, item.height)


def test_async_client_generates_an_image(simulator):
    async def generate():
        async with getimg.AsyncGetimgAI(api_key=simulator.api_key, base_url=simulator.url) as client:
            return await client.images.generate(model="sketch-mini", prompt="x")

    assert asyncio.run(generate()).model == "sketch-mini"


def test_client_lists_filters_and_retrieves_models(simulator, client):
    every, images, videos = (
        client.models.list(**query) for query in ({}, {"type": "image"}, {"type": "video"})
    )
    assert {model.id for model in images} == {
        "seedream-5-lite",
        "atelier-pro",
        "sketch-mini",
        "preview-unpriced",
    }
    assert {model.id for model in videos} == {"seedance-v1-pro", "reel-sound"}
    assert len(every) == len(images) + len(videos)
    for model in every:
        assert client.models.retrieve(model.id).to_dict() == model.to_dict()
        prices = [float(rate.unit_price) for rate in model.pricing.rates]
        assert prices == sorted(prices)
        assert bool(prices) is (model.id != "preview-unpriced")
    assert '"supported_durations":[5.0,10.0]' in simulator.http.get("/v2/models").text


def test_client_retrieves_the_balance_and_the_costs(client):
    client.images.generate(model="atelier-pro", prompt="x")
    balance = client.billing.retrieve_balance()
    assert (balance.balance, balance.currency) == ("99.91", "USD")
    now = datetime.now(UTC)
    costs = client.billing.list_costs(start=now - timedelta(days=1), end=now + timedelta(minutes=1))
    assert costs.total_cost == 0.09


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, getimg.BadRequestError),
        (401, getimg.AuthenticationError),
        (402, getimg.APIStatusError),
        (403, getimg.PermissionDeniedError),
        (404, getimg.NotFoundError),
        (409, getimg.ConflictError),
        (422, getimg.UnprocessableEntityError),
        (429, getimg.RateLimitError),
        (500, getimg.InternalServerError),
    ],
)
def test_client_raises_the_error_class_of_each_status(simulator, client, status, error):
    simulator.fault("image", "status", status=status)
    with pytest.raises(error) as raised:
        client.images.generate(model="seedream-5-lite", prompt="x")
    assert type(raised.value) is error
    assert raised.value.status_code == status
    assert (
        raised.value.body["error"]["message"]
        if "error" in raised.value.body
        else raised.value.body["message"]
    )


def test_client_raises_matching_errors_for_rejections_timeouts_and_broken_responses(simulator, client):
    with pytest.raises(getimg.BadRequestError, match="Unsupported resolution '4K'"):
        client.images.generate(model="seedream-5-lite", prompt="x", resolution="4K")
    with pytest.raises(getimg.UnprocessableEntityError):
        client.images.generate(model="seedream-5-lite", prompt="gore")
    with pytest.raises(getimg.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(getimg.NotFoundError, match="was not found"):
        client.videos.generations.retrieve("nope")
    with pytest.raises(getimg.AuthenticationError):
        client.with_options(api_key="sk_wrong").models.list()
    simulator.fault("image", "hang")
    with pytest.raises(getimg.APITimeoutError):
        client.images.generate(model="seedream-5-lite", prompt="x", timeout=0.3)
    simulator.fault("image", "truncate")
    with pytest.raises(getimg.APIConnectionError):
        client.images.generate(model="seedream-5-lite", prompt="x")


def test_client_pays_twice_when_it_retries_after_a_dropped_response(simulator):
    """A scheduler must not do this, and only the ledger shows that two images were billed."""
    simulator.fault("image", "drop_after_billing")
    with getimg.GetimgAI(api_key=simulator.api_key, base_url=simulator.url) as client:
        client.images.generate(model="seedream-5-lite", prompt="x")
    assert [post["outcome"] for post in simulator.ledger()["posts"]] == ["dropped", "delivered"]
    assert simulator.ledger()["billed_total"] == 0.08
