# SPDX-License-Identifier: Apache-2.0
"""Events that signal handlers set."""

from __future__ import annotations

import _thread
import threading
import time

# How long the main thread waits for another one to set an event.
_SET_SECONDS = 1.0


def set_event(event: threading.Event) -> None:
    """Set an event. Safe to call from a signal handler."""
    if threading.current_thread() is not threading.main_thread():
        event.set()
        return
    try:
        # A handler may have interrupted ``Event.wait`` or ``Event.set`` while they hold the event's lock.
        _thread.start_new_thread(event.set, ())
    except RuntimeError:
        # There can be no more threads.
        event.set()
    until = time.monotonic() + _SET_SECONDS
    while not event.is_set() and time.monotonic() < until:
        time.sleep(0.001)
