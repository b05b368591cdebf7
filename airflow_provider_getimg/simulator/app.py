# SPDX-License-Identifier: Apache-2.0
"""The endpoints of the API."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from airflow_provider_getimg.simulator import billing
from airflow_provider_getimg.simulator.auth import check_key
from airflow_provider_getimg.simulator.catalogue import MODELS
from airflow_provider_getimg.simulator.control import add_control
from airflow_provider_getimg.simulator.errors import ApiError, as_json, error_body, invalid
from airflow_provider_getimg.simulator.faults import OddFile, Reply
from airflow_provider_getimg.simulator.generations import generate, take_post
from airflow_provider_getimg.simulator.media import Content
from airflow_provider_getimg.simulator.odd import odd_file, reply
from airflow_provider_getimg.simulator.videos import state, submit, video_response
from airflow_provider_getimg.simulator.wire import (
    DeferredResponse,
    Responder,
    SimulatedResponse,
    WithDate,
    wait,
)

if TYPE_CHECKING:
    from starlette.types import Send

    from airflow_provider_getimg.simulator.faults import Fault
    from airflow_provider_getimg.simulator.state import Simulator

JSON = {"Content-Type": "application/json"}


def create_app(simulator: Simulator) -> FastAPI:
    """Return the API of this workspace as an ASGI application."""
    app = FastAPI(title="getimg-simulator", openapi_url=None, redirect_slashes=False)
    app.add_middleware(WithDate, settings=simulator.settings)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _not_found)
    _add_images(app, simulator)
    _add_videos(app, simulator)
    _add_models(app, simulator)
    _add_billing(app, simulator)
    _add_downloads(app, simulator)
    add_control(app, simulator)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(as_json(error.body), error.status, {**JSON, **error.headers})


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error_body(error.status_code, f"There is no {request.method} {request.url.path} here.")
    return Response(as_json(body), error.status_code, {**JSON, **(error.headers or {})})


def _add_images(app: FastAPI, simulator: Simulator) -> None:
    @app.post("/v2/images/generations")
    async def post_image(request: Request) -> Response:
        work = partial(generate, simulator)
        return DeferredResponse(partial(take_post, simulator, "image", work, request))


def _add_videos(app: FastAPI, simulator: Simulator) -> None:
    @app.post("/v2/videos/generations")
    async def post_video(request: Request) -> Response:
        work = partial(submit, simulator)
        return DeferredResponse(partial(take_post, simulator, "video", work, request))

    @app.get("/v2/videos/generations/{video_id}")
    async def video(request: Request, video_id: str) -> Response:
        check_key(request, simulator.api_key)
        good = state(simulator, request, video_id)
        fault = _due(simulator, request, "video_status")
        return _deferred(
            simulator, request, await video_response(simulator, request, good, fault, 200), fault
        )


def _add_models(app: FastAPI, simulator: Simulator) -> None:
    def show(request: Request, value: object) -> Response:
        response = SimulatedResponse(200, Content.of(as_json(value)), JSON)
        return _deferred(simulator, request, response, _due(simulator, request, "models"))

    @app.get("/v2/models")
    async def models(request: Request) -> Response:
        check_key(request, simulator.api_key)
        kind = request.query_params.get("type")
        if kind not in (None, "image", "video"):
            raise invalid("type", f"Unsupported type '{kind}'.")
        return show(request, [m.public() for m in MODELS.values() if kind in (None, m.type)])

    @app.get("/v2/models/{model_id}")
    async def model(request: Request, model_id: str) -> Response:
        check_key(request, simulator.api_key)
        if model_id not in MODELS:
            raise ApiError(404, f"Model '{model_id}' was not found.", param="model")
        return show(request, MODELS[model_id].public())


def _add_billing(app: FastAPI, simulator: Simulator) -> None:
    @app.get("/v2/billing/balance")
    async def balance(request: Request) -> Response:
        check_key(request, simulator.api_key)
        body = {"balance": simulator.account.public_balance(), "currency": "USD"}
        return Response(as_json(body), headers=JSON)

    @app.get("/v2/billing/costs")
    async def costs(request: Request) -> Response:
        check_key(request, simulator.api_key)
        return Response(as_json(billing.costs(simulator.ledger, request.query_params)), headers=JSON)


def _add_downloads(app: FastAPI, simulator: Simulator) -> None:
    @app.api_route("/v2/downloads/{file_id}/{index}", methods=["GET", "HEAD"])
    async def download(request: Request, file_id: str, index: str) -> Response:
        # No bearer token: the signed URL is the credential.
        query = request.query_params
        file = simulator.media.find(file_id, index, query.get("exp", ""), query.get("sig", ""))
        headers = {
            "Content-Type": file.shown.mime_type,
            "ETag": f'"{file.id}"',
            "Cache-Control": "private",
        }
        fault = _due(simulator, request, "download")
        if isinstance(fault, OddFile) and fault.redirects:
            url = request.url.include_query_params(hop=simulator.faults.redirect(fault))
            return _deferred(
                simulator, request, SimulatedResponse(302, Content.of(b""), {"Location": str(url)}), fault
            )
        response = SimulatedResponse(200, await simulator.media.content(file), headers)
        if isinstance(fault, OddFile):
            response = await odd_file(fault, file, response, simulator.media)
        return _deferred(simulator, request, response, fault, latency=simulator.settings.download_latency)


def _due(simulator: Simulator, request: Request, on: str) -> Fault | None:
    """Return the fault that redirected to this GET, or else the next one for its kind."""
    # A HEAD only asks what a GET would do, and uses up no fault.
    if request.method != "GET":
        return None
    return simulator.faults.follow(request.query_params.get("hop", "")) or simulator.faults.take(on)


def _deferred(
    simulator: Simulator,
    request: Request,
    response: SimulatedResponse,
    fault: Fault | None,
    *,
    latency: float = 0.0,
) -> Response:
    """Return an object that sends the response, or the fault's reply in its place."""
    if isinstance(fault, Reply):
        response = reply(fault)

    async def run(send: Send) -> None:
        responder = Responder(request, send, simulator)
        await wait(simulator.settings.real(latency), responder.connection.lost, simulator.stopping)
        await responder.respond(response, fault)

    return DeferredResponse(run)
