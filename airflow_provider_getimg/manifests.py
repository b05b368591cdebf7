# SPDX-License-Identifier: Apache-2.0
"""Read a batch's manifest in a downstream task."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ManifestLine:
    """
    The outcome of one row of a batch.

    :param row: Its index in the batch, from 0.
    :param outcome: ``saved``, ``reused``, ``failed`` or ``not_sent``.
    :param request: What was requested, with the labels.
    :param uri: The URI of its first file; None if nothing was saved.
    :param uris: The URIs of all its files.
    :param cost: In USD; None if unknown.
    :param error: Why it failed.
    """

    row: int
    outcome: str
    request: Mapping[str, Any]
    uri: str | None = None
    uris: Sequence[str] = ()
    sha256: str | None = None
    bytes: int | None = None
    mime_type: str | None = None
    generation_id: str | None = None
    cost: float | None = None
    error: str | None = None

    @property
    def is_saved(self) -> bool:
        """Whether its files are in S3."""
        return self.uri is not None

    @property
    def labels(self) -> Mapping[str, Any]:
        """The row's labels."""
        labels: Mapping[str, Any] = self.request.get("labels") or {}
        return labels


def read_manifest(uri: str, aws_conn_id: str | None = "aws_default") -> list[ManifestLine]:
    """
    Return the lines of a batch's manifest.

    :param uri: The ``manifest`` of the batch's summary.
    :param aws_conn_id: The AWS connection: the ``aws_conn_id`` of the summary.
    :raises InvalidInputError: There is no such object, or it is not a manifest.
    :raises UnavailableError: S3 could not be reached.
    """
    from airflow_provider_getimg.api.errors import InvalidInputError
    from airflow_provider_getimg.api.quote import quote
    from airflow_provider_getimg.batch.requests_file import read_lines
    from airflow_provider_getimg.s3.connection import s3_client, s3_hook

    if not isinstance(uri, str) or not uri.startswith("s3://"):
        raise InvalidInputError(f"uri must be the s3://bucket/key of a manifest, got {quote(uri)}.")
    faults: list[str] = []
    found = [
        _line(line)
        for _, line in read_lines("uri", uri, lambda: s3_client(s3_hook(aws_conn_id, 1)), faults.append)
    ]
    lines = [line for line in found if line is not None]
    if faults or len(lines) < len(found):
        raise InvalidInputError(
            f"uri must be that of a manifest, got {uri}: some of its lines are not a manifest's."
        )
    return lines


def _line(line: Mapping[str, Any]) -> ManifestLine | None:
    """Parse a line, ignoring fields from later versions; return None if it is not a manifest's."""
    request = line.get("request")
    if (
        not isinstance(line.get("row"), int)
        or not isinstance(line.get("outcome"), str)
        or not isinstance(request, dict)
    ):
        return None
    known = {field.name: line[field.name] for field in fields(ManifestLine) if field.name in line}
    files = line.get("files") or ([line] if line.get("uri") else [])
    if not isinstance(files, list):
        return None
    uris = [file.get("uri") if isinstance(file, dict) else None for file in files]
    if not all(isinstance(uri, str) for uri in [*uris, line.get("uri") or ""]):
        return None
    return ManifestLine(**{**known, "uris": tuple(uris)})
