# SPDX-License-Identifier: Apache-2.0
"""Turns what tasks recorded into pictures: rows of a transfer, lines of a batch's manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.batch.requests_file import MAX_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_getimg.plugin.airflow_api import Task


@dataclass(frozen=True, slots=True)
class Picture:
    """
    One saved file, as its task recorded it. Anyone who may edit XComs may have changed it.

    :param index: Its position among the task's files.
    :param file_index: Its position among the files of its generation.
    """

    task: Task
    index: int
    uri: str
    generation_id: str
    file_index: int
    aws_conn_id: str | None
    sha256: str = ""
    mime_type: str = ""
    prompt: str = ""
    model: str = ""
    cost: float | None = None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """Its part of a gallery URL."""
        return f"{self.task.path}/{self.index}"

    @property
    def is_video(self) -> bool:
        """Whether it is played rather than shown."""
        return self.mime_type.startswith("video/")

    @property
    def alt(self) -> str:
        """Its text for screen readers."""
        return (
            self.prompt
            or f"{'Video' if self.is_video else 'Image'} {self.index + 1} of task {self.task.task_id}"
        )


def manifest_of(value: Any) -> tuple[str, str | None] | None:
    """Return the URI of a batch's manifest and its AWS connection; None if the XCom is not a batch's."""
    if isinstance(value, dict) and isinstance(uri := value.get("manifest"), str) and "aws_conn_id" in value:
        return uri, _text_or_none(value["aws_conn_id"])
    return None


def of_transfer(task: Task, value: Any) -> list[Picture]:
    """Return the pictures of a transfer's XCom, skipping anything that is not a row of one."""
    rows = value if isinstance(value, list) else []
    return [
        _picture(task, index, row, row, row.get("index"), row["aws_conn_id"])
        for index, row in enumerate(rows)
        # A row from an older version doesn't name the connection to read it with.
        if isinstance(row, dict) and isinstance(row.get("uri"), str) and "aws_conn_id" in row
    ]


def lines_of(manifest: bytes) -> list[dict[str, Any]]:
    """Return the lines of a manifest that have files, among the maximum number of lines that a batch has."""
    lines = islice(_json_lines(manifest), MAX_REQUESTS)
    return [line for line in lines if isinstance(line.get("uri"), str)]


def of_manifest(task: Task, lines: Iterable[dict[str, Any]], aws_conn_id: str | None) -> list[Picture]:
    """Return the pictures of a batch."""
    pictures: list[Picture] = []
    for line in lines:
        files = line.get("files")
        for number, file in enumerate(files if isinstance(files, list) else [line]):
            if isinstance(file, dict) and isinstance(file.get("uri"), str):
                cost = line if number == 0 else {}
                pictures.append(
                    _picture(
                        task, len(pictures), {**line, "cost": cost.get("cost")}, file, number, aws_conn_id
                    )
                )
    return pictures


def _picture(
    task: Task, index: int, row: dict[str, Any], file: dict[str, Any], file_index: Any, aws_conn_id: Any
) -> Picture:
    request = row.get("request")
    request = request if isinstance(request, dict) else {}
    labels = request.get("labels")
    return Picture(
        task,
        index,
        uri=file["uri"],
        generation_id=_text(row.get("generation_id")),
        file_index=file_index if isinstance(file_index, int) else 0,
        aws_conn_id=_text_or_none(aws_conn_id),
        sha256=_text(file.get("sha256")),
        mime_type=_text(file.get("mime_type")),
        prompt=_text(request.get("prompt")),
        model=_text(row.get("model")) or _text(request.get("model")),
        cost=amount(row.get("cost")),
        size=_number(file.get("bytes")),
        width=_number(file.get("width")),
        height=_number(file.get("height")),
        labels=tuple((str(name), str(text)) for name, text in labels.items())
        if isinstance(labels, dict)
        else (),
    )


def _json_lines(content: bytes) -> Iterable[dict[str, Any]]:
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def amount(value: Any) -> float | None:
    """Return a recorded amount in USD, which may have been edited since; None if it is invalid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        return None
    return float(value)
