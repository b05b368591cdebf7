# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from airflow_provider_getimg.api.signals import call_from_handler


def test_signal_handler_does_not_wait_for_a_lock_that_the_interrupted_thread_holds():
    event = threading.Event()
    # As in Event.wait, which the handler may interrupt.
    with event._cond:
        call_from_handler(event.set)
    assert event.wait(10)


def test_signal_handler_raises_no_error_into_the_code_that_it_interrupted():
    called = []

    def log(line: str) -> None:
        called.append(line)
        raise BrokenPipeError

    call_from_handler(log, "a line")
    assert called == ["a line"]
