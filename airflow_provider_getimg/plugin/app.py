# SPDX-License-Identifier: Apache-2.0
"""The pages under ``/getimg``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable  # noqa: TC003
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.plugin.account import Accounts
from airflow_provider_getimg.plugin.airflow_api import AirflowApi, Filter, Task
from airflow_provider_getimg.plugin.costs import CostRecords, Spend, bars, largest
from airflow_provider_getimg.plugin.gallery import Cursor, Gallery, Page
from airflow_provider_getimg.plugin.render import page
from airflow_provider_getimg.version_compat import AIRFLOW_VERSION, SORTS_XCOMS

_STATIC = Path(__file__).parent / "static"
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FILE_HEADERS = {
    "Cache-Control": "private, max-age=300",
    # The next user who logs in with the same browser must not get what the last one saw.
    "Vary": "Cookie, Authorization",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")
_TEXTS = {
    401: "Log in to Airflow to see this page.",
    403: "You may not read the XComs of this DAG.",
    404: "There is no such image or video, or it can't be read.",
    416: "The video has no such part.",
}

# Airflow decides who may read the XComs of a DAG, here and again in each call to its API.
router = APIRouter(dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))])


async def _api(request: Request, user: GetUserDep) -> AsyncIterator[AirflowApi]:
    def may_read(dag_id: str) -> bool:
        try:
            requires_access_dag("GET", DagAccessEntity.XCOM, dag_id)(request, user)
        except HTTPException:
            return False
        return True

    async with AirflowApi(request, may_read) as api:
        yield api


def _needs_sorted_lists() -> None:
    if not SORTS_XCOMS:
        raise HTTPException(501, f"This page needs Airflow 3.2 or newer; this is Airflow {AIRFLOW_VERSION}.")


def _gallery(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


def _task(
    dag_id: str, run_id: str, task_id: str, map_index: Annotated[int, PathParameter(ge=-1, lt=2**31)]
) -> Task:
    # In Airflow's API, this name means all of them.
    if "~" in (dag_id, run_id, task_id):
        raise HTTPException(404)
    return Task(dag_id, run_id, task_id, map_index)


Api = Annotated[AirflowApi, Depends(_api)]
Shared = Annotated[Gallery, Depends(_gallery)]
OneTask = Annotated[Task, Depends(_task)]
IMAGE = "/images/{dag_id}/{run_id}/{task_id}/{map_index}/{index}"


_FILTERS = ("dag", "run", "task", "map_index", "day", "model")


def _query(
    dag: str = "",
    run: str = "",
    task: str = "",
    map_index: str = "",
    day: str = "",
    model: str = "",
) -> dict[str, str]:
    asked = {"dag": dag, "run": run, "task": task, "map_index": map_index, "day": day, "model": model}
    return {name: text.strip() for name, text in asked.items() if text.strip()}


Query = Annotated[dict[str, str], Depends(_query)]


@router.get("/images/", dependencies=[Depends(_needs_sorted_lists)])
async def images(request: Request, api: Api, gallery: Shared, query: Query, start: str = "") -> Response:
    """Show the newest images."""
    is_refused = False
    try:
        found = await gallery.page(api, _filter(query), query.get("model", ""), Cursor.parse(start))
    except HTTPException as error:
        if not _names_no_dag(query, error):
            raise
        found, is_refused = Page([], None), True
    return page(
        request,
        "images.html",
        pictures=found.pictures,
        is_refused=is_refused,
        following=found.following,
        query=query,
        start=start,
        back=_back(query, start),
    )


@router.get(IMAGE)
async def image(
    request: Request, api: Api, gallery: Shared, task: OneTask, index: int, back: str | None = None
) -> Response:
    """Show one image with its details; ``back`` is the query of the list that led here."""
    pictures, saved_at = await gallery.of_task(api, task)
    picture = next((one for one in pictures if one.index == index), None)
    if picture is None:
        raise HTTPException(404)
    at = pictures.index(picture)
    previous = pictures[at - 1] if at else None
    following = pictures[at + 1] if at + 1 < len(pictures) else None
    query: dict[str, str] = {}
    start = link = following_link = ""
    if back is not None and SORTS_XCOMS:
        given = dict(parse_qsl(back))
        start = given.get("start", "")
        query = _query(**{name: text for name, text in given.items() if name in _FILTERS})
        link = following_link = _back(query, start)
        which, model = _filter(query), query.get("model", "")
        listed = await gallery.page(api, which, model, Cursor.parse(start))
        paths = [one.path for one in listed.pictures]
        if picture.path in paths:
            here = paths.index(picture.path)
            # The first picture of a page links back only to earlier pictures of its own task.
            previous = listed.pictures[here - 1] if here else previous
            if here + 1 < len(paths):
                following = listed.pictures[here + 1]
            elif listed.following is not None:
                older = await gallery.page(api, which, model, listed.following)
                following = older.pictures[0] if older.pictures else None
                following_link = _back(query, str(listed.following))
            else:
                following = None
    return page(
        request,
        "image.html",
        picture=picture,
        previous=previous,
        following=following,
        back=link,
        following_back=following_link,
        up=urlencode({**query, "start": start} if start else query),
        saved_at=saved_at,
        count=len(pictures),
    )


@router.get(f"{IMAGE}/file")
async def file(
    api: Api,
    gallery: Shared,
    task: OneTask,
    index: int,
    wanted: Annotated[str, Header(alias="range")] = "",
) -> Response:
    """Send the image itself, or the part of a video that a player requests."""
    picture = await gallery.picture(api, task, index)
    headers = _FILE_HEADERS | ({"Accept-Ranges": "bytes"} if picture.is_video else {})
    # A server may ignore a range of any other form.
    if not picture.is_video or (match := _RANGE.fullmatch(wanted)) is None:
        start = await gallery.part(picture, 0, None)
        return StreamingResponse(
            gallery.parts(picture, start),
            media_type=start.mime_type,
            headers=headers | {"Content-Length": str(start.size)},
        )
    part = await gallery.part(picture, int(match[1]), int(match[2]) if match[2] else None)
    last = part.first + len(part.content) - 1
    return Response(
        part.content,
        206,
        media_type=part.mime_type,
        headers=headers | {"Content-Range": f"bytes {part.first}-{last}/{part.size}"},
    )


@router.get(f"{IMAGE}/thumbnail")
async def thumbnail(api: Api, gallery: Shared, task: OneTask, index: int) -> Response:
    """Send a small copy of the image."""
    shown = await gallery.thumbnail(await gallery.picture(api, task, index))
    return Response(shown.content, media_type=shown.mime_type, headers=_FILE_HEADERS)


@router.get("/spend/", dependencies=[Depends(_needs_sorted_lists)])
async def spend(
    request: Request,
    api: Api,
    user: GetUserDep,
    dag: str = "",
    conn: str = GetimgHook.default_conn_name,
) -> Response:
    """Show what recent images cost."""
    query = _query(dag)
    conn_id = conn.strip() or GetimgHook.default_conn_name
    today = datetime.now(UTC).date()
    is_refused = False
    try:
        _refuse_any(query)
        spent = await request.app.state.costs.spend(api, query.get("dag", ""), today)
    except HTTPException as error:
        if not _names_no_dag(query, error):
            raise
        spent, is_refused = Spend.until(today), True
    account = await request.app.state.accounts.read(user, conn_id, spent.first)
    return page(
        request,
        "spend.html",
        spend=spent,
        bars=bars(spent),
        by_dag=largest(spent.by_dag),
        by_model=largest(spent.by_model),
        account=account,
        is_refused=is_refused,
        conn_id=conn_id,
        kept={} if conn_id == GetimgHook.default_conn_name else {"conn": conn_id},
        query=query,
    )


def _refuse_any(query: dict[str, str]) -> None:
    # In Airflow's API, this name means all of them.
    if "~" in query.values():
        raise HTTPException(404)


def _names_no_dag(query: dict[str, str], error: HTTPException) -> bool:
    """Return whether Airflow refused the DAG that the user typed: the page says so, and has the form for another one."""
    return "dag" in query and error.status_code in (403, 404)


def _back(query: dict[str, str], start: str) -> str:
    """Return the query string of an image's link that leads back to the list."""
    return "?" + urlencode({"back": urlencode({**query, "start": start} if start else query)})


def _filter(query: dict[str, str]) -> Filter:
    _refuse_any(query)
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


def _redirect_to(target: str) -> Callable[[Request], RedirectResponse]:
    """Return a handler that redirects to a relative URL: behind a proxy, only the browser knows the host and the prefix."""

    def redirect(request: Request) -> RedirectResponse:
        query = request.url.query
        return RedirectResponse(f"{target}?{query}" if query else target)

    return redirect


def create_app() -> FastAPI:
    """Return the app that Airflow's API server mounts."""
    # FastAPI's own redirects use the host that the client names.
    app = FastAPI(title="getimg.ai", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.gallery = Gallery()
    app.state.costs = CostRecords()
    app.state.accounts = Accounts()
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

    for path, target in (("/", "images/"), ("/images", "images/"), ("/spend", "spend/")):
        app.add_api_route(path, _redirect_to(target), response_class=RedirectResponse)

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
        response = page(request, "error.html", status=error.status_code, text=text, login=login)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def not_found(request: Request, _: RequestValidationError) -> Response:
        """Respond with 404 to a path with an invalid number."""
        return await explain(request, StarletteHTTPException(404))

    return app
