# SPDX-License-Identifier: Apache-2.0
"""Which pictures are on a page, and what is behind one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from fastapi.concurrency import run_in_threadpool

from airflow_provider_getimg.plugin import objects, pictures, thumbnails

if TYPE_CHECKING:
    from airflow_provider_getimg.plugin.airflow_api import AirflowApi, Filter, Task
    from airflow_provider_getimg.plugin.pictures import Picture

PAGE_SIZE = 24
# A page of one model looks through so many tasks at most, and then offers to go on.
_TASKS_AT_MOST = 240
_THUMBNAILS_BYTES = 64 * 1024 * 1024
_MANIFESTS_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a page begins. It stays the same when newer tasks come.

    :param rank: Of the task, counted from the oldest, which is 1.
    :param index: Of the picture among those of the task.
    """

    rank: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """Return the place that a URL names; None if it names none."""
        rank, _, index = text.partition(".")
        if not (rank.isdecimal() and index.isdecimal() and rank.isascii() and index.isascii()):
            return None
        # SQLite can't count further.
        return cls(int(rank), int(index)) if len(rank) < 16 and len(index) < 16 else None

    def __str__(self) -> str:
        return f"{self.rank}.{self.index}"


@dataclass(frozen=True, slots=True)
class Page:
    """Pictures with the ranks of their tasks, and where the next page begins, if there is one."""

    pictures: list[tuple[int, Picture]]
    following: Place | None


class Gallery:
    """What all requests share: clients of S3, thumbnails, manifests."""

    def __init__(self) -> None:
        self._objects = objects.Objects()
        self._thumbnails = objects.Cache(_THUMBNAILS_BYTES)
        self._manifests = objects.Cache(_MANIFESTS_BYTES)

    async def page(self, api: AirflowApi, which: Filter, model: str, place: Place | None) -> Page:
        """Return the pictures from a place on, of one model if one is given."""
        offset, first = 0, 0
        if place is not None:
            _, total = await api.list_tasks(which, offset=0, limit=1)
            offset, first = max(0, total - place.rank), place.index
        found: list[tuple[int, Picture]] = []
        looked_at = 0
        while looked_at < _TASKS_AT_MOST:
            tasks, total = await api.list_tasks(which, offset=offset, limit=PAGE_SIZE)
            values = await asyncio.gather(*(self._value(api, task) for task in tasks))
            for position, (task, value) in enumerate(zip(tasks, values, strict=True)):
                rank = total - offset - position
                for picture in (await self._pictures(task, value))[first:]:
                    if model and picture.model != model:
                        continue
                    if len(found) == PAGE_SIZE:
                        return Page(found, Place(rank, picture.index))
                    found.append((rank, picture))
                first = 0
            looked_at += len(tasks)
            offset += len(tasks)
            if not tasks or offset >= total:
                return Page(found, None)
            if len(found) == PAGE_SIZE:
                break
        return Page(found, Place(total - offset, 0))

    async def of_task(self, api: AirflowApi, task: Task) -> list[Picture]:
        """Return the pictures of one task."""
        return await self._pictures(task, await self._value(api, task))

    async def picture(self, api: AirflowApi, task: Task, index: int) -> Picture:
        """
        Return one picture.

        :raises HTTPException: There is none.
        """
        found = next((one for one in await self.of_task(api, task) if one.index == index), None)
        if found is None:
            raise HTTPException(404)
        return found

    async def shown(self, picture: Picture, *, small: bool) -> thumbnails.Shown:
        """
        Return what of a picture goes to the browser.

        :raises HTTPException: The object can't be read, or isn't this picture.
        """
        shown: thumbnails.Shown = await self._read(
            picture.uri,
            picture.aws_conn_id,
            objects.is_of(picture),
            objects.IMAGE_MAX_BYTES,
            thumbnails.thumbnail if small else thumbnails.image,
            self._thumbnails if small else None,
        )
        return shown

    async def _value(self, api: AirflowApi, task: Task) -> Any:
        try:
            value, _ = await api.xcom(task, "return_value")
        except HTTPException as error:
            # Cleared since it was listed; or a task that failed and returned nothing.
            if error.status_code == 404:
                return None
            raise
        return value

    async def _pictures(self, task: Task, value: Any) -> list[Picture]:
        manifest = pictures.manifest_of(value)
        if manifest is None:
            return pictures.of_transfer(task, value)
        uri, aws_conn_id = manifest
        try:
            lines = await self._read(
                uri,
                aws_conn_id,
                objects.is_manifest,
                objects.MANIFEST_MAX_BYTES,
                pictures.lines_of,
                self._manifests,
            )
        except HTTPException:
            return []
        return pictures.of_manifest(task, lines, aws_conn_id)

    async def _read(self, *args: Any) -> Any:
        try:
            return await run_in_threadpool(self._objects.read, *args)
        except objects.NotReadableError:
            raise HTTPException(404) from None
