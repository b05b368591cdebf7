# SPDX-License-Identifier: Apache-2.0
"""The endpoints under ``/_simulator``: for tests, not part of the API, no key required.

A browser on this machine can reach them too, so requests from web pages are refused: see ``_guard``.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from airflow_provider_getimg.simulator import videos
from airflow_provider_getimg.simulator.account import parse_balance
from airflow_provider_getimg.simulator.errors import ApiError, as_json
from airflow_provider_getimg.simulator.fields import parse
from airflow_provider_getimg.simulator.generations import read_body

if TYPE_CHECKING:
    from airflow_provider_getimg.simulator.state import Simulator


ALL_ADDRESSES = ("0.0.0.0", "::", "")


def _show(value: object) -> Response:
    return Response(as_json(value), headers={"Content-Type": "application/json"})


def _guard(simulator: Simulator, request: Request) -> None:
    """Refuse requests from web pages: those with a foreign origin, and those to a name rebound to this machine."""
    host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
    if not _is_known(f"//{host}", simulator, request):
        raise ApiError(403, f"The Host must be localhost or an address of the simulator, got {host!r}.")
    if origin is not None and not _is_known(origin, simulator, request):
        raise ApiError(403, f"The Origin must be localhost or an address of the simulator, got {origin!r}.")


def _is_known(url: str, simulator: Simulator, request: Request) -> bool:
    try:
        host = (urlsplit(url).hostname or "").partition("%")[0]
    except ValueError:
        return False
    # The address that the client connected to, in case the simulator listens on all of them.
    own = str((request.scope["server"] or ("",))[0])
    if host in (own, simulator.host.lower(), "localhost") or host.endswith(".localhost"):
        return bool(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # No internet host has a name without a dot; a container does, and it listens on all addresses.
        return simulator.host in ALL_ADDRESSES and bool(host) and "." not in host


async def _fields(request: Request, *required: str) -> dict[str, Any]:
    # A page may send other types to any server without a CORS preflight.
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The Content-Type must be application/json.")
    fields = parse(await read_body(request))
    if required and set(fields) != set(required):
        raise ApiError(400, f"The body must be a JSON object with {' and '.join(map(repr, required))} alone.")
    return fields


def add_control(app: FastAPI, simulator: Simulator) -> None:
    """Add the endpoints to the application."""

    async def guard(request: Request) -> None:
        _guard(simulator, request)

    control = APIRouter(prefix="/_simulator", dependencies=[Depends(guard)])

    @control.get("/health")
    async def health() -> Response:
        return _show({"status": "ok", "running": simulator.limits.running})

    @control.get("/ledger")
    async def ledger() -> Response:
        return _show(simulator.ledger.public())

    @control.delete("/ledger")
    async def empty_ledger() -> Response:
        simulator.ledger.clear()
        return Response(status_code=204)

    @control.delete("/generations")
    async def forget_generations() -> Response:
        simulator.forgotten.set()
        simulator.forgotten = asyncio.Event()
        await videos.forget(simulator)
        if simulator.limits.running:
            # Time for the images' requests to end.
            await asyncio.sleep(0.05)
        return Response(status_code=204)

    @control.get("/faults")
    async def faults() -> Response:
        return _show({"faults": simulator.faults.public()})

    @control.post("/faults")
    async def add_faults(request: Request) -> Response:
        fields = await _fields(request, "faults")
        try:
            simulator.faults.add(fields["faults"])
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="faults") from None
        return _show({"faults": simulator.faults.public()})

    @control.delete("/faults")
    async def clear_faults() -> Response:
        simulator.faults.clear()
        return Response(status_code=204)

    @control.put("/balance")
    async def set_balance(request: Request) -> Response:
        fields = await _fields(request, "balance")
        try:
            simulator.account.balance = parse_balance(fields["balance"])
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="balance") from None
        return _show({"balance": simulator.account.public_balance(), "currency": "USD"})

    @control.get("/settings")
    async def settings() -> Response:
        return _show(simulator.settings.model_dump())

    @control.put("/settings")
    async def change_settings(request: Request) -> Response:
        fields = await _fields(request)
        try:
            simulator.settings.change(fields)
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="settings") from None
        if {"rpm", "preset", "time_scale"} & fields.keys():
            simulator.limits.new_window()
        return _show(simulator.settings.model_dump())

    app.include_router(control)
