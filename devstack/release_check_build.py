# SPDX-License-Identifier: Apache-2.0
"""Builds what would be released, and compares it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from packaging.metadata import Metadata

from devstack.process import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def build(kind: str, source: Path, target: Path) -> Path:
    """
    Build with the project's own backend, which needs no environment of its own: it has no dependencies.

    :param kind: ``wheel`` or ``sdist``.
    :param source: The folder with ``pyproject.toml``.
    :param target: The folder for the file.
    :returns: The file.
    :raises devstack.StackError: The backend failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    code = f"from flit_core import buildapi; print(buildapi.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StackError(f"The {kind} can't be built in {source}:", done.stderr)
    return target / done.stdout.split()[-1]


def unpack(sdist: Path, target: Path) -> Path:
    """Unpack an sdist and return its one folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    [folder] = target.iterdir()
    return folder


def digests(wheel: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of the files that are not the same in both."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def checked_metadata(wheel: Path) -> Metadata:
    """
    Read a wheel's metadata as an index does that accepts it.

    :raises devstack.StackError: It would be refused, or its description shown as plain text.
    """
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        raw = archive.read(name)
    try:
        metadata = Metadata.from_email(raw, validate=True)
    except ExceptionGroup as group:
        raise StackError("The metadata is not valid:", "\n".join(map(str, group.exceptions))) from None
    if metadata.description_content_type != "text/markdown":
        raise StackError(f"The description is {metadata.description_content_type}, not Markdown.")
    page = MarkdownIt("gfm-like", {"linkify": False}).render(metadata.description or "")
    if f"<h1>{metadata.name}</h1>" not in page or "<pre><code" not in page:
        raise StackError("The README does not become a page with its heading and its examples.")
    return metadata
