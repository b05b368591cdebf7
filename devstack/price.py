# SPDX-License-Identifier: Apache-2.0
"""What a DAG's images will cost at the real API: said before anything is asked for."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import httpx

from devstack.process import StackError

if TYPE_CHECKING:
    from pathlib import Path

OPERATOR = "GenerateImageOperator"


def model_in(dag_file: Path) -> str:
    """Read which model a DAG file asks for, without importing it.

    :raises devstack.StackError: The file names none, or more than one.
    """
    tree = ast.parse(dag_file.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    models = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == OPERATOR:
            for keyword in node.keywords:
                if keyword.arg == "model":
                    value = keyword.value
                    if isinstance(value, ast.Name):
                        value = constants.get(value.id, value)
                    models.add(ast.literal_eval(value) if isinstance(value, ast.Constant) else None)
    if len(models) != 1 or not isinstance(model := models.pop(), str) or "{{" in model:
        raise StackError(f"{dag_file.name} does not say which model it uses.")
    return model


def price_of(model: str, *, api_url: str, api_key: str) -> str:
    """Ask the API what an image of this model costs; this is free.

    :return: Such as ``0.04 USD``, or a range where it depends on the resolution.
    :raises devstack.StackError: The API refused or can't be reached, or it tells no price.
    """
    try:
        response = httpx.get(
            f"{api_url}/v2/models/{model}",
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=30,
        )
    except httpx.HTTPError as error:
        raise StackError(f"{api_url} can't be reached: {type(error).__name__}.") from None
    if response.is_error:
        raise StackError(f"{api_url} refused to tell the price of {model}: {_reason(response)}.")
    try:
        pricing = response.json()["pricing"]
        prices = {
            float(rate["unit_price"]): str(rate["unit_price"])
            for rate in pricing["rates"]
            if rate["billable_unit"] == "image"
        }
        currency = pricing["currency"]
    except (ValueError, KeyError, TypeError):
        raise StackError(f"{api_url} gave no readable price of {model}.") from None
    if not prices:
        raise StackError(f"{api_url} tells no price of {model}: nothing was asked for.")
    low, high = prices[min(prices)], prices[max(prices)]
    return f"{low} {currency}" if low == high else f"{low} to {high} {currency}"


def _called(call: ast.Call) -> str | None:
    """Return the name of the class or function that is called, also of ``X.partial(...)``."""
    function = call.func
    if isinstance(function, ast.Attribute):
        function = function.value
    return function.id if isinstance(function, ast.Name) else None


def _reason(response: httpx.Response) -> str:
    try:
        return f"{response.status_code} {response.json()['error']['message']}".rstrip(".")
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)
