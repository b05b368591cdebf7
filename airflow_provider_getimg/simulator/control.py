# SPDX-License-Identifier: Apache-2.0
"""The endpoints under ``/_simulator``: for tests, not part of the API, and without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from airflow_provider_getimg.simulator.account import parse_balance
from airflow_provider_getimg.simulator.errors import ApiError, as_json
from airflow_provider_getimg.simulator.generations import read_body
from airflow_provider_getimg.simulator.orders import parse

if TYPE_CHECKING:
    from airflow_provider_getimg.simulator.state import Simulator


def _show(value: object) -> Response:
    return Response(as_json(value), headers={"Content-Type": "application/json"})


async def _fields(request: Request, *required: str) -> dict[str, Any]:
    fields = parse(await read_body(request))
    if required and set(fields) != set(required):
        raise ApiError(400, f"The body must be a JSON object with {' and '.join(map(repr, required))} alone.")
    return fields


def add_control(app: FastAPI, simulator: Simulator) -> None:
    """Add the endpoints to the application."""

    @app.get("/_simulator/health")
    async def health() -> Response:
        return _show({"status": "ok", "running": simulator.limits.running})

    @app.get("/_simulator/ledger")
    async def ledger() -> Response:
        return _show(simulator.ledger.public())

    @app.delete("/_simulator/ledger")
    async def empty_ledger() -> Response:
        simulator.ledger.clear()
        return Response(status_code=204)

    @app.get("/_simulator/faults")
    async def faults() -> Response:
        return _show({"faults": simulator.faults.public()})

    @app.post("/_simulator/faults")
    async def add_faults(request: Request) -> Response:
        fields = await _fields(request, "faults")
        try:
            simulator.faults.add(fields["faults"])
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="faults") from None
        return _show({"faults": simulator.faults.public()})

    @app.delete("/_simulator/faults")
    async def clear_faults() -> Response:
        simulator.faults.clear()
        return Response(status_code=204)

    @app.put("/_simulator/balance")
    async def set_balance(request: Request) -> Response:
        fields = await _fields(request, "balance")
        try:
            simulator.account.balance = parse_balance(fields["balance"])
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="balance") from None
        return _show({"balance": simulator.account.public_balance(), "currency": "USD"})

    @app.get("/_simulator/settings")
    async def settings() -> Response:
        return _show(simulator.settings.public())

    @app.put("/_simulator/settings")
    async def change_settings(request: Request) -> Response:
        fields = await _fields(request)
        try:
            simulator.settings.change(fields)
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="settings") from None
        if "rpm" in fields:
            simulator.limits.new_window()
        return _show(simulator.settings.public())
