# SPDX-License-Identifier: Apache-2.0
"""Finds the pictures on a page, and reads the object behind each of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from airflow_provider_getimg.plugin import objects, pictures, thumbnails

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from airflow_provider_getimg.plugin.airflow_api import AirflowApi, Filter, Task
    from airflow_provider_getimg.plugin.pictures import Picture

PAGE_SIZE = 24
# A page of one model searches at most this many tasks, and then offers to continue.
_MAX_TASKS = 240
# Runs are searched in windows of these lengths, newest first; the last one is unbounded.
_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=30), None)
_INSTANT = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"(-?[0-9]{1,18})\.([0-9]{1,9})\.(-?[0-9]{1,18})\.([0-9]{1,9})", re.ASCII)
_THUMBNAILS_BYTES = 64 * 1024 * 1024
_MANIFESTS_BYTES = 128 * 1024 * 1024
_VALUES_BYTES = 32 * 1024 * 1024
_VALUE_SECONDS = 30.0
_THREADS = 4


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    Where a page starts. It stays valid when newer tasks arrive.

    :param run_after: The ``run_after`` of the task's run.
    :param offset: How many tasks of runs of exactly that time came before it when the cursor was created.
    :param saved_at: When the task saved its images; tasks that saved later are skipped.
    :param index: The picture's position among those of the task.
    """

    run_after: datetime
    offset: int
    saved_at: datetime
    index: int

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """Return the cursor from a URL; None if it has no valid one."""
        if (match := _CURSOR.fullmatch(text)) is None:
            return None
        run_after, offset, saved_at, index = map(int, match.groups())
        try:
            return cls(_time(run_after), offset, _time(saved_at), index)
        except OverflowError:
            return None

    def __str__(self) -> str:
        return f"{_microseconds(self.run_after)}.{self.offset}.{_microseconds(self.saved_at)}.{self.index}"


@dataclass(frozen=True, slots=True)
class Page:
    """Pictures, and where the next page starts, if there is one."""

    pictures: list[Picture]
    following: Cursor | None


class Gallery:
    """What all requests share: S3 clients, thumbnails, manifests."""

    def __init__(self) -> None:
        self._objects = objects.Objects()
        self._thumbnails = objects.Cache(_THUMBNAILS_BYTES)
        self._manifests = objects.Cache(_MANIFESTS_BYTES)
        self._values = objects.Cache(_VALUES_BYTES)
        # A separate pool: a store that doesn't respond must not take the threads that serve Airflow's API.
        self._threads = ThreadPoolExecutor(_THREADS, "getimg-gallery")

    async def page(self, api: AirflowApi, which: Filter, model: str, cursor: Cursor | None) -> Page:
        """Return a page of pictures starting at a cursor, of one model if one is given."""
        found: list[Picture] = []
        async with aclosing(self._tasks(api, which, cursor)) as batches:
            looked_at = 0
            # More at once is slower on SQLite, and no faster on PostgreSQL.
            at_once = asyncio.Semaphore(4)
            async for batch in batches:
                if len(found) == PAGE_SIZE or looked_at >= _MAX_TASKS:
                    return Page(found, replace(batch[0][1], index=0))
                looked_at += len(batch)
                readable = await api.readable([task for task, _ in batch])
                values = await asyncio.gather(*(self._value(api, task, at_once) for task in readable))
                value_of = dict(zip(readable, values, strict=True))
                for task, at in batch:
                    if task not in value_of:
                        continue
                    value, _ = value_of[task]
                    first = cursor.index if cursor is not None and at.saved_at == cursor.saved_at else 0
                    # The index is for the page's first task, not for another one that saved at the same moment.
                    cursor = None
                    for picture in await self._pictures(task, value):
                        if picture.index < first or (model and picture.model != model):
                            continue
                        if len(found) == PAGE_SIZE:
                            return Page(found, replace(at, index=picture.index))
                        found.append(picture)
        return Page(found, None)

    async def _tasks(
        self, api: AirflowApi, which: Filter, cursor: Cursor | None
    ) -> AsyncGenerator[list[tuple[Task, Cursor]]]:
        """
        Yield batches of tasks starting at a cursor, with the cursor of each task.

        Airflow counts and sorts everything that matches a filter, so the runs of a short window are requested first.
        """
        if cursor is not None:
            before = cursor.run_after + _INSTANT
        elif newest := await _newest_run(api, which):
            before = newest + _INSTANT
        else:
            return
        run_after, count = (cursor.run_after, cursor.offset) if cursor is not None else (None, 0)
        for window in (None,) if which.run_id else _WINDOWS:
            after = _before(before, window)
            oldest = which.after and datetime.fromisoformat(which.after)
            if not after or (oldest and after <= oldest):
                after = oldest or None
            part = replace(which, after=after.isoformat() if after else "", before=before.isoformat())
            offset = count if run_after == before - _INSTANT else 0
            while True:
                tasks, total = await api.list_tasks(part, offset=offset, limit=PAGE_SIZE)
                offset += len(tasks)
                batch: list[tuple[Task, Cursor]] = []
                for task in tasks:
                    of_run, saved_at = (
                        datetime.fromisoformat(text) for text in (task.run_after, task.saved_at)
                    )
                    if of_run != run_after:
                        run_after, count = of_run, 0
                    if cursor is None or of_run != cursor.run_after or saved_at <= cursor.saved_at:
                        batch.append((task, Cursor(of_run, count, saved_at, 0)))
                    count += 1
                if batch:
                    yield batch
                if not tasks or offset >= total:
                    break
            if after is None or after == oldest:
                return
            before = after

    async def of_task(self, api: AirflowApi, task: Task) -> tuple[list[Picture], str]:
        """Return the pictures of one task and when it returned them."""
        value, saved_at = await self._value(api, task)
        return await self._pictures(task, value), saved_at

    async def picture(self, api: AirflowApi, task: Task, index: int) -> Picture:
        """
        Return one picture.

        :raises HTTPException: There is none.
        """
        of_task, _ = await self.of_task(api, task)
        found = next((one for one in of_task if one.index == index), None)
        if found is None:
            raise HTTPException(404)
        return found

    async def thumbnail(self, picture: Picture) -> thumbnails.Shown:
        """
        Return a thumbnail of a picture.

        :raises HTTPException: The object can't be read, isn't this picture, or is too large for a thumbnail.
        """
        shown: thumbnails.Shown = await self._run(
            self._objects.read,
            picture.uri,
            picture.aws_conn_id,
            objects.picture_check(picture),
            objects.IMAGE_MAX_BYTES,
            thumbnails.thumbnail,
            self._thumbnails,
        )
        if not shown.content:
            raise HTTPException(404)
        return shown

    async def parts(self, picture: Picture, first: objects.Part) -> AsyncGenerator[bytes]:
        """Yield the content of an object part by part, to keep little of it in memory; ``first`` is the first part."""
        part = first
        yield part.content
        while (done := part.first + len(part.content)) < first.size:
            part = await self.part(picture, done, None)
            if part.etag != first.etag:
                raise OSError("The object was replaced while it was sent.")
            yield part.content

    async def part(self, picture: Picture, first: int, last: int | None) -> objects.Part:
        """
        Return a part of an image or a video.

        :raises HTTPException: The object can't be read, isn't this one, or has no such part.
        """
        part: objects.Part = await self._run(
            self._objects.read_part,
            picture.uri,
            picture.aws_conn_id,
            objects.picture_check(picture),
            thumbnails.shown_type,
            first,
            last,
        )
        if not part.content:
            raise HTTPException(416)
        return part

    async def _value(
        self, api: AirflowApi, task: Task, at_once: AbstractAsyncContextManager[None] | None = None
    ) -> tuple[Any, str]:
        """
        Return what a task returned, and when. The viewer's access was checked before, so the value may be another viewer's.

        It is cached briefly: each thumbnail of a page needs it again.
        """
        key = replace(task, saved_at="", run_after="")
        until, found = self._values.get(key) or (0.0, None)
        if found is not None and time.monotonic() < until:
            return found  # type: ignore[no-any-return]
        try:
            async with at_once or nullcontext():
                value, saved_at = await api.xcom(task, "return_value")
        except HTTPException as error:
            # Cleared since it was listed, or the task failed and returned nothing.
            if error.status_code == 404:
                return None, ""
            raise
        until = time.monotonic() + _VALUE_SECONDS
        self._values.put(key, (until, (value, saved_at)), 1000 + len(json.dumps(value)))
        return value, saved_at

    async def _pictures(self, task: Task, value: Any) -> list[Picture]:
        manifest = pictures.manifest_of(value)
        if manifest is None:
            return pictures.of_transfer(task, value)
        uri, aws_conn_id = manifest
        try:
            lines = await self._run(
                self._objects.read,
                uri,
                aws_conn_id,
                objects.manifest_check(task),
                objects.MANIFEST_MAX_BYTES,
                pictures.lines_of,
                self._manifests,
            )
        except HTTPException:
            return []
        return pictures.of_manifest(task, lines, aws_conn_id)

    async def _run(self, read: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read, *args)
        except objects.NotReadableError:
            raise HTTPException(404) from None


async def _newest_run(api: AirflowApi, which: Filter) -> datetime | None:
    try:
        text = await api.newest_run(which)
    except HTTPException as error:
        # Someone who may read XComs may still not be permitted to list runs.
        if error.status_code != 403:
            raise
        return datetime.fromisoformat(which.before) if which.before else datetime.now(UTC)
    return datetime.fromisoformat(text) if text else None


def _before(time: datetime, window: timedelta | None) -> datetime | None:
    try:
        return time - window if window is not None else None
    except OverflowError:
        return None


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // _INSTANT


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
