# SPDX-License-Identifier: Apache-2.0
"""The cluster's folder, which is gone after the cluster, however that ends."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.network import clean_environment
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

# What deletes the folder is its guard.
KEEPER = "import signal; signal.pause()"


class ClusterFolder:
    """Where the cluster keeps data, settings and logs.

    :param path: A folder to use and to leave there; otherwise a temporary one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._given = path
        self._keeper: GuardedProcess | None = None
        self.path = Path()

    def open(self) -> None:
        """Make the folder, and start what deletes a temporary one if this process is killed."""
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
        # PostgreSQL's user must get through to its data; a list of the others is not its business.
        self.path.chmod(0o711)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a component's temporary files here, from where they are deleted.

        Only in a temporary folder: the names of multiprocessing's sockets have room for a short path alone.
        """
        if self._keeper is None:
            return {}
        folder = self.path / "tmp"
        folder.mkdir(exist_ok=True)
        return {"TMPDIR": str(folder)}

    @property
    def temporary(self) -> Path | None:
        """The folder, if it is to be deleted in the end, however that comes."""
        return None if self._keeper is None else self.path

    def log(self, name: str) -> Path:
        """Return where the output of a component goes."""
        return self.path / "logs" / f"{name}.log"

    def link(self, folders: Sequence[Path]) -> Path:
        """Return one folder in which each of these is a link."""
        dags = self.path / "dags"
        dags.mkdir()
        for number, folder in enumerate(folders):
            (dags / f"{number}-{folder.name}").symlink_to(folder.absolute())
        return dags

    def close(self) -> None:
        """Delete a temporary folder; what wrote there has ended."""
        if self._keeper is not None:
            self._keeper.end()
