# SPDX-License-Identifier: Apache-2.0
"""The pages under ``/getimg``."""

from __future__ import annotations

from collections.abc import AsyncIterator  # noqa: TC003
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_getimg.plugin.airflow_api import AirflowApi, Filter, Task
from airflow_provider_getimg.plugin.gallery import Gallery, Place
from airflow_provider_getimg.plugin.render import page

_STATIC = Path(__file__).parent / "static"
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TEXTS = {
    401: "Log in to Airflow to see images.",
    403: "You may not read the XComs of this DAG.",
    404: "There is no such image, or it can't be read.",
}

# Airflow decides who may read the XComs of a DAG, here and again in each call of its API.
router = APIRouter(dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))])


async def _api(request: Request) -> AsyncIterator[AirflowApi]:
    async with AirflowApi(request) as api:
        yield api


def _gallery(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


def _task(dag_id: str, run_id: str, task_id: str, map_index: int) -> Task:
    # To Airflow's API this name means all of them.
    if "~" in (dag_id, run_id, task_id):
        raise HTTPException(404)
    return Task(dag_id, run_id, task_id, map_index)


Api = Annotated[AirflowApi, Depends(_api)]
Shared = Annotated[Gallery, Depends(_gallery)]
OneTask = Annotated[Task, Depends(_task)]
IMAGE = "/images/{dag_id}/{run_id}/{task_id}/{map_index}/{index}"


@router.get("/images/")
async def images(
    request: Request,
    api: Api,
    gallery: Shared,
    dag: str = "",
    run: str = "",
    task: str = "",
    map_index: str = "",
    day: str = "",
    model: str = "",
    start: str = "",
) -> Response:
    """Show the newest images."""
    asked = {"dag": dag, "run": run, "task": task, "map_index": map_index, "day": day, "model": model}
    query = {name: text.strip() for name, text in asked.items() if text.strip()}
    which = _filter(query)
    found = await gallery.page(api, which, query.get("model", ""), Place.parse(start))
    return page(
        request, "images.html", pictures=found.pictures, following=found.following, query=query, start=start
    )


@router.get(IMAGE)
async def image(request: Request, api: Api, gallery: Shared, task: OneTask, index: int) -> Response:
    """Show one image, with what is known about it."""
    pictures = await gallery.of_task(api, task)
    at = next((at for at, one in enumerate(pictures) if one.index == index), None)
    if at is None:
        raise HTTPException(404)
    return page(
        request,
        "image.html",
        picture=pictures[at],
        previous=pictures[at - 1] if at else None,
        following=pictures[at + 1] if at + 1 < len(pictures) else None,
        count=len(pictures),
    )


@router.get(f"{IMAGE}/file")
async def file(api: Api, gallery: Shared, task: OneTask, index: int) -> Response:
    """Send the image itself."""
    return await _shown(api, gallery, task, index, small=False)


@router.get(f"{IMAGE}/thumbnail")
async def thumbnail(api: Api, gallery: Shared, task: OneTask, index: int) -> Response:
    """Send a small copy of the image."""
    return await _shown(api, gallery, task, index, small=True)


async def _shown(api: AirflowApi, gallery: Gallery, task: Task, index: int, *, small: bool) -> Response:
    picture = await gallery.picture(api, task, index)
    shown = await gallery.shown(picture, small=small)
    return Response(
        shown.content,
        media_type=shown.mime_type,
        headers={
            "Cache-Control": "private, max-age=300",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )


def _filter(query: dict[str, str]) -> Filter:
    if "~" in query.values():
        raise HTTPException(404)
    after = before = ""
    if "day" in query:
        try:
            day = date.fromisoformat(query["day"])
            after, before = f"{day}T00:00:00Z", f"{day + timedelta(days=1)}T00:00:00Z"
        except (ValueError, OverflowError):
            raise HTTPException(400, "The day must be a date such as 2026-01-31.") from None
    index = query.get("map_index", "")
    number = int(index) if index.isdecimal() and index.isascii() and len(index) < 10 else None
    return Filter(query.get("dag", ""), query.get("run", ""), query.get("task", ""), number, after, before)


def create_app() -> FastAPI:
    """Return the app that Airflow's API server mounts."""
    app = FastAPI(title="getimg.ai", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gallery = Gallery()
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(StarletteHTTPException)
    async def explain(request: Request, error: StarletteHTTPException) -> Response:
        text = _TEXTS.get(error.status_code, error.detail)
        login = (
            get_auth_manager().get_url_login(next_url=str(request.url)) if error.status_code == 401 else ""
        )
        return page(request, "error.html", status=error.status_code, text=text, login=login)

    return app
