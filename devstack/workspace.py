# SPDX-License-Identifier: Apache-2.0
"""The demo's own folder: emptied at each run, used by one run at a time, never anyone else's."""

from __future__ import annotations

import fcntl
import shutil
from typing import TYPE_CHECKING, Self

from devstack.process import StackError

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

# Proves that the folder is ours to empty, and its lock that nobody is using it.
MARKER = ".airflow-provider-getimg-demo"


class Workspace:
    """A folder that is emptied on entry and stays as it is on exit.

    :param path: The folder. It may be missing or empty, or must hold the marker of an earlier run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marker: TextIOWrapper | None = None

    def __enter__(self) -> Self:
        """Take the folder and empty it.

        :raises devstack.StackError: Another run uses it, or something else made it.
        """
        marker = self.path / MARKER
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise StackError(f"{self.path} is not a folder of the demo's own; please move it away.")
        if self.path.exists() and any(self.path.iterdir()) and not marker.is_file():
            raise StackError(f"{self.path} holds files that the demo did not make; please move them away.")
        self.path.mkdir(exist_ok=True)
        lock = marker.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StackError(
                f"Another demo is running in {self.path}; end it first (Ctrl-C there)."
            ) from None
        self._marker = lock
        for entry in self.path.iterdir():
            if entry == marker:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        if self._marker is not None:
            self._marker.close()
