# SPDX-License-Identifier: Apache-2.0
"""Odd responses and files: paid images as other servers, and the networks in between, may deliver them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_getimg.simulator.errors import as_json
from airflow_provider_getimg.simulator.media import Content
from airflow_provider_getimg.simulator.pictures import Picture
from airflow_provider_getimg.simulator.wire import CHUNK, SimulatedResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_getimg.simulator.faults import Delivery, OddFile, OddResponse, Reply
    from airflow_provider_getimg.simulator.media import Media, MediaFile

DRAWN = ("png", "jpeg", "webp", "gif")
# 16 x 16 gray pixels: not every build of Pillow can write AVIF.
AVIF = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAA"
    "AAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAIgAAAChpaW5mAAAAAAABAAAAGmluZmUC"
    "AAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAAAAADCAgIAAAA"
    "DGF2MUOBAAwAAAAAE2NvbHJuY2x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAKm1kYXQSAAoJGAz/2iAhoNCA"
    "MhMZR4eGIYeeeeaAAAB1hk3a5low"
)
TEXTS = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><rect width="1" height="1"/></svg>\n',
    "html": b"<!DOCTYPE html>\n<html><head><title>Not a picture</title></head><body></body></html>\n",
    "json": b'{"error":{"message":"This is no picture.","code":"no_picture"}}',
    "text": b"This is no picture.\n",
    "nothing": b"",
}


def changed_headers(headers: Mapping[str, str], changes: Mapping[str, object]) -> dict[str, str]:
    """Return the headers with the changes applied, ignoring case; ``None`` removes one."""
    names = {name.lower() for name in changes}
    kept = {name: value for name, value in headers.items() if name.lower() not in names}
    return kept | {name: str(value) for name, value in changes.items() if value is not None}


def reply(fault: Reply, headers: Mapping[str, str] | None = None) -> SimulatedResponse:
    """Return the response that replaces the correct one.

    :param headers: Further headers, which the fault's override.
    """
    mime_type, body = fault.content()
    sent = changed_headers({**(headers or {}), "Content-Type": mime_type}, fault.headers)
    return SimulatedResponse(fault.status, Content.of(body), sent)


def odd_body(fault: OddResponse, good: dict[str, Any], item: Callable[[int], dict[str, Any]]) -> bytes:
    """Return the body of a response, as changed by the fault.

    :param good: The good response.
    :param item: Returns the entry of ``data`` for an index, with a working URL.
    """
    response: Any = dict(good)
    if fault.data is not None:
        response["data"] = [_entry(entry, item) for entry in fault.data]
    response = _merge(response, fault.merge)
    if fault.body is None:
        return as_json(response)
    text = fault.body.replace("$RESPONSE", as_json(response).decode()).replace(
        "$FILE", as_json(item(0)).decode()
    )
    return text.encode("utf-8", "replace")


def _entry(entry: Any, item: Callable[[int], dict[str, Any]]) -> Any:
    if not isinstance(entry, dict) or "$file" not in entry:
        return entry
    fields = item(entry["$file"]) | entry
    for name in ("$file", "$omit", *entry.get("$omit", ())):
        fields.pop(name, None)
    return fields


def _merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


async def odd_file(
    fault: OddFile, file: MediaFile, response: SimulatedResponse, media: Media
) -> SimulatedResponse:
    """Return the response to a download, as changed by the fault."""
    content = await _other_content(fault.bytes, file, media) if fault.bytes else response.content
    headers = response.headers
    if fault.status == 206 and content.length:
        headers = {**headers, "Content-Range": f"bytes 0-{content.length - 1}/{content.length}"}
    return await delivered(fault, replace(response, status=fault.status, content=content, headers=headers))


async def _other_content(kind: str, file: MediaFile, media: Media) -> Content:
    if kind in DRAWN:
        shown = file.shown
        picture = Picture(shown.prompt, "", shown.width, shown.height, kind)
        return await media.content(replace(file, shown=picture))
    if kind == "avif":
        return Content.of(AVIF)
    if kind == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("text.txt", TEXTS["text"])
        return Content.of(packed.getvalue())
    return Content.of(TEXTS[kind])


async def delivered(fault: Delivery, response: SimulatedResponse) -> SimulatedResponse:
    """Return the response with the fault's encoding, headers and announced length."""
    content, headers = response.content, response.headers
    if fault.encoding != "identity":
        headers = {**headers, "Content-Encoding": fault.encoding}
        body = b"".join(content.chunks(CHUNK))
        for _ in fault.encoding.split(","):
            body = await asyncio.to_thread(gzip.compress, body, 6, mtime=0)
        content = Content.of(body)
    return replace(
        response, content=content, headers=changed_headers(headers, fault.headers), length=fault.length
    )
