# SPDX-License-Identifier: Apache-2.0
"""What signal handlers do."""

from __future__ import annotations

import _thread
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# How long the main thread waits for another one to make a call.
_WAIT_SECONDS = 1.0


def call_from_handler(call: Callable[..., object], *args: object) -> None:
    """
    Set an event or log a line, wherever a signal handler has interrupted the main thread.

    The interrupted code may hold the event's or the log's lock, so another thread makes the call; the main thread waits for it up to a
    second. An error is ignored: raised from the handler, it would break off the request that the handler has interrupted.
    """
    # A new lock: the interrupted code can't hold it.
    calling = _thread.allocate_lock()
    calling.acquire()

    def make() -> None:
        with suppress(Exception):
            call(*args)
        calling.release()

    if threading.current_thread() is not threading.main_thread():
        make()
        return
    try:
        _thread.start_new_thread(make, ())
    except RuntimeError:
        # There can be no more threads.
        make()
    calling.acquire(timeout=_WAIT_SECONDS)
