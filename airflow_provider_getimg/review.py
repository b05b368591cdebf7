# SPDX-License-Identifier: Apache-2.0
"""
Shows a run's images to a person before they are published, in the Markdown of a task that waits for an answer.

Imported while DAGs are parsed, so it imports nothing heavy.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_provider_getimg.api.printable import printable
from airflow_provider_getimg.manifests import read_manifest
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk.types import RuntimeTaskInstanceProtocol

# Longer prompts are truncated; the image's page in the gallery shows all of it.
_PROMPT_CHARACTERS = 300
# CommonMark lets a backslash escape any of these.
_ESCAPES = str.maketrans({character: f"\\{character}" for character in string.punctuation})
# These keep a right-to-left prompt from reordering the text around it.
_ISOLATE, _END_ISOLATE = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"


@dataclass(frozen=True, slots=True)
class SavedImage:
    """
    One image of a run.

    :param number: Its position among the task's images, from 1, for a person to refer to.
    :param uri: Its location: ``s3://bucket/key``.
    :param prompt: What was requested; empty if unknown.
    :param aws_conn_id: The AWS connection that it was saved with.
    :param page: The path of its page in the gallery, without the host.
    """

    number: int
    uri: str
    prompt: str
    aws_conn_id: str | None
    page: str

    @property
    def bucket(self) -> str:
        """The bucket in ``uri``."""
        return bucket_and_key(self.uri)[0]

    @property
    def key(self) -> str:
        """The object's key in ``uri``."""
        return bucket_and_key(self.uri)[1]


def saved_images(ti: RuntimeTaskInstanceProtocol, task_id: str) -> list[SavedImage]:
    """
    Return the images that a task of this run saved, always in the same order.

    :param ti: A task instance of the same run: ``ti`` of the context.
    :param task_id: A ``TransferToS3Operator`` or a ``GenerateImagesToS3Operator``, mapped or not. For a batch, the
        manifest is read.
    :raises InvalidInputError: A batch's manifest is gone.
    :raises UnavailableError: S3 could not be reached.
    """
    prefix = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    names = "/".join(quote(name, safe="") for name in (ti.dag_id, ti.run_id, task_id))
    images: list[SavedImage] = []
    for map_index, value in _xcoms(ti, task_id):
        for index, uri, request, aws_conn_id in _files(value):
            page = f"{prefix}/getimg/images/{names}/{map_index}/{index}"
            prompt = request.get("prompt") if isinstance(request, dict) else None
            images.append(
                SavedImage(len(images) + 1, uri, prompt if isinstance(prompt, str) else "", aws_conn_id, page)
            )
    return images


def images_markdown(ti: RuntimeTaskInstanceProtocol, task_id: str) -> str:
    """
    Return Markdown that shows the images that a task of this run saved, each with its number and its prompt.

    For use in a template, such as the ``body`` of Airflow's ``ApprovalOperator``. Each image links to its page in the gallery,
    which also serves the image: nothing expires, and viewers need permission to read the DAG's XComs. Parameters and errors
    are those of :func:`saved_images`.
    """
    images = saved_images(ti, task_id)
    if not images:
        return f"{task_id.translate(_ESCAPES)} saved no images."
    return "\n\n".join(map(_markdown, images))


def _markdown(image: SavedImage) -> str:
    text = " ".join(printable(image.prompt).split())
    if len(text) > _PROMPT_CHARACTERS:
        text = f"{text[:_PROMPT_CHARACTERS]}…"
    name = f"Image {image.number}"
    shown = f"{_ISOLATE}{text.translate(_ESCAPES)}{_END_ISOLATE}" if text else name
    # The prompt is inside a link, so a URL in it doesn't become a link of its own.
    return f"**{image.number}.** [{shown}]({image.page})\n\n[![{name}]({image.page}/thumbnail)]({image.page})"


def _xcoms(ti: RuntimeTaskInstanceProtocol, task_id: str) -> Iterator[tuple[int, Any]]:
    """Yield each value that the task returned, with its map index. A list of all values would not show which are missing."""
    value = ti.xcom_pull(task_ids=task_id, map_indexes=-1)
    if value is not None:
        yield -1, value
        return
    count = ti.get_ti_count(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id])
    yield from enumerate(ti.xcom_pull(task_ids=task_id, map_indexes=range(count)))


def _files(value: Any) -> Iterator[tuple[int, str, Any, str | None]]:
    """Yield the gallery index, URI, request and AWS connection of each file that a task's XCom lists."""
    if isinstance(value, dict) and isinstance(value.get("manifest"), str):
        aws_conn_id = value.get("aws_conn_id")
        lines = (line for line in read_manifest(value["manifest"], aws_conn_id) if line.is_saved)
        files = ((uri, line.request) for line in lines for uri in line.uris)
        for index, (uri, request) in enumerate(files):
            yield index, uri, request, aws_conn_id
    for index, row in enumerate(value if isinstance(value, list) else ()):
        # A row from an older version doesn't say which connection reads it.
        if isinstance(row, dict) and isinstance(row.get("uri"), str) and "aws_conn_id" in row:
            yield index, row["uri"], row.get("request"), row["aws_conn_id"]
