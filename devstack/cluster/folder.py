# SPDX-License-Identifier: Apache-2.0
"""The cluster's folder, deleted after the cluster, however that ends."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.network import clean_environment
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

# It does nothing: its guard deletes the folder.
KEEPER = "import signal; signal.pause()"


class ClusterFolder:
    """Where the cluster keeps data, settings and logs.

    :param path: A folder to use and keep; by default a temporary one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._given = path
        self._keeper: GuardedProcess | None = None
        self.path = Path()

    def open(self) -> None:
        """Create the folder. A guard deletes a temporary one even if this process is killed."""
        if self._given is not None:
            self.path = self._given.absolute()
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.path = Path(tempfile.mkdtemp(prefix="getimg-cluster-"))
            self._keeper = GuardedProcess(
                "The folder's keeper",
                [sys.executable, "-I", "-c", KEEPER],
                log=self.log("keeper"),
                env=clean_environment(),
                remove=[self.path],
            )
        # PostgreSQL's user must reach its own data, but not list the rest.
        self.path.chmod(0o711)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that put a component's temporary files here, so that they are deleted, too.

        Only for a temporary folder, whose path is short enough for the names of multiprocessing's sockets.
        """
        if self._keeper is None:
            return {}
        folder = self.path / "tmp"
        folder.mkdir(exist_ok=True)
        return {"TMPDIR": str(folder)}

    @property
    def temporary(self) -> Path | None:
        """The folder if it is a temporary one, which is deleted at the end."""
        return None if self._keeper is None else self.path

    def log(self, name: str) -> Path:
        """Return the path of a component's log file."""
        return self.path / "logs" / f"{name}.log"

    def link(self, folders: Sequence[Path]) -> Path:
        """Create a folder with a symbolic link to each of these, and return it."""
        dags = self.path / "dags"
        dags.mkdir()
        for number, folder in enumerate(folders):
            (dags / f"{number}-{folder.name}").symlink_to(folder.absolute())
        return dags

    def close(self) -> None:
        """Delete a temporary folder, once everything that writes there has ended."""
        if self._keeper is not None:
            self._keeper.end()
