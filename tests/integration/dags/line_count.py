# SPDX-License-Identifier: Apache-2.0
"""
Ends a task's process at an exact line.

Airflow puts the folder of a task's file on the path, so the tests' own files here may import it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

# A push of the XCom, the success and the asset events are the task runner's.
TASK_RUNNER = "execution_time/task_runner.py"
NOT_COUNTED = ("/simulator/", "/testing/", "/tests/")


class LineCount:
    """
    Counts the lines that an operator, and Airflow's task runner after it, execute in all threads.

    :param moment: The process ends with SIGKILL right before its ``moment``-th line, or before a line at a place that
        starts with the text ``moment``, such as ``journal.py:_commit:``, for the first time, or, with ``#7`` at its end, for
        the seventh. 0: never.
    :param witness: Gets the place of death, or of each line where ``moment`` is 0.
    :param counted: Parts of the paths of files whose lines count.
    """

    def __init__(
        self, moment: int | str, witness: Path, counted: tuple[str, ...] = ("airflow_provider_getimg/",)
    ) -> None:
        place, _, times = str(moment).partition("#")
        self._line = int(place) if place.isdecimal() else -1
        self._place = place
        self._times = int(times or 1)
        self._counted = (*counted, TASK_RUNNER)
        self._lines = 0
        self._lock = threading.Lock()
        self._places = witness.open("a", buffering=1)
        self._known: dict[str, bool] = {}

    def start(self) -> None:
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        # The task runner's frames are older than the trace function: those that are active are asked too.
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if self._counts(frame.f_code.co_filename):
                frame.f_trace = self._on_line
            frame = frame.f_back

    def _counts(self, file: str) -> bool:
        if file not in self._known:
            ours = any(part in file for part in self._counted)
            self._known[file] = ours and not any(part in file for part in NOT_COUNTED)
        return self._known[file]

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._on_line if self._counts(frame.f_code.co_filename) else None

    def _on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{code.co_name}:{frame.f_lineno}"
            with self._lock:
                self._lines += 1
                if self._line < 0 and place.startswith(self._place):
                    self._times -= 1
                dies = self._lines == self._line or not self._times
                if dies or not self._line:
                    self._places.write(f"{place}\n")
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line
