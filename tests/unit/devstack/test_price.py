# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devstack import Simulator, StackError
from devstack.price import model_in, price_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("GenerateImageOperator(model='m-1', prompt='x')", "m-1"),
        ("MODEL = 'm-2'\nGenerateImageOperator(model=MODEL)", "m-2"),
        ("GenerateImageOperator.partial(model='m-3').expand(prompt=[])", "m-3"),
    ],
    ids=["literal", "constant", "mapped"],
)
def test_model_is_read_from_the_dag_file(tmp_path: Path, source: str, model: str) -> None:
    file = tmp_path / "dag.py"
    file.write_text(source)
    assert model_in(file) == model


@pytest.mark.parametrize(
    "source",
    ["", "GenerateImageOperator(model='{{ params.model }}')", "GenerateImageOperator(model=f())"],
    ids=["none", "template", "call"],
)
def test_model_that_can_not_be_known_stops_the_demo(tmp_path: Path, source: str) -> None:
    file = tmp_path / "dag.py"
    file.write_text(source)
    with pytest.raises(StackError, match="does not say which model"):
        model_in(file)


def test_price_comes_from_the_api_for_nothing(simulator: Simulator) -> None:
    price = price_of("seedream-5-lite", api_url=simulator.url, api_key=simulator.api_key)
    assert price.endswith(" USD")
    assert float(price.split()[0]) > 0
    assert simulator.ledger()["posts"] == []


@pytest.mark.parametrize(
    ("model", "key", "reason"),
    [("no-such-model", None, "404"), ("seedream-5-lite", "sk_wrong_key", "401")],
    ids=["model", "key"],
)
def test_refusal_is_one_sentence_without_the_key(
    simulator: Simulator, model: str, key: str | None, reason: str
) -> None:
    with pytest.raises(StackError, match=reason) as caught:
        price_of(model, api_url=simulator.url, api_key=key or simulator.api_key)
    assert "sk_" not in str(caught.value)


def test_api_that_is_down_is_one_sentence() -> None:
    with pytest.raises(StackError, match="can't be reached: ConnectError"):
        price_of("m", api_url="http://127.0.0.1:9", api_key="sk_x")
