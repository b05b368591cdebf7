# SPDX-License-Identifier: Apache-2.0
"""The hook's free requests, against the simulator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from airflow_provider_getimg.api.balance import check_balance
from airflow_provider_getimg.api.errors import ConnectionConfigError, InsufficientBalanceError
from airflow_provider_getimg.api.requests import ImageRequest
from airflow_provider_getimg.api.types import Balance
from airflow_provider_getimg.hooks.getimg import GetimgHook


@pytest.fixture
def hook(getimg_default):
    with GetimgHook() as hook:
        yield hook


def test_models_and_their_prices_are_read_for_free(hook, getimg_default):
    assert {model.type for model in hook.list_models()} == {"image", "video"}
    models = {model.id: model for model in hook.list_models("image")}
    assert {model.type for model in models.values()} == {"image"}
    assert hook.get_model("seedream-5-lite") == models["seedream-5-lite"]
    assert hook.image_price("seedream-5-lite") == Decimal("0.04")
    assert hook.image_price("seedance-v1-pro") is None
    assert not getimg_default.ledger


def test_balance_and_costs_reflect_a_generation(hook):
    now = datetime.now(UTC)
    before = hook.get_balance()
    hook.client.generate_image(ImageRequest(model="seedream-5-lite", prompt="An owl"))
    assert before.balance - hook.get_balance().balance == Decimal("0.04")
    costs = hook.get_costs(now - timedelta(hours=1), now + timedelta(hours=1))
    assert costs.total_cost == Decimal("0.04")
    assert sum(day.cost for day in costs.data) == Decimal("0.04")


class TestCheckBalance:
    def test_returns_a_balance_that_covers_the_cost(self, hook, getimg_default):
        getimg_default.balance = "1.20"
        assert check_balance(hook.client, Decimal("1.2")) == Decimal("1.20")

    def test_rejects_a_balance_below_the_cost_before_anything_is_billed(self, hook, getimg_default):
        getimg_default.balance = "1.19"
        with pytest.raises(InsufficientBalanceError) as error:
            check_balance(hook.client, Decimal("1.20"))
        assert str(error.value) == (
            "The account's balance must be at least 1.20 USD, got 1.19 USD. API credits are prepaid and "
            "separate from the consumer plans. Nothing was billed."
        )
        assert not getimg_default.ledger

    def test_rejects_a_balance_in_another_currency(self, hook, monkeypatch):
        # The simulator has only USD.
        monkeypatch.setattr(
            type(hook.client), "get_balance", lambda _: Balance(balance=Decimal(9), currency="EUR")
        )
        with pytest.raises(ConnectionConfigError, match="must be in USD, got 'EUR'"):
            check_balance(hook.client, Decimal(1))
