# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from airflow_provider_getimg.api.signals import set_event


def test_signal_handler_does_not_wait_for_a_lock_that_the_interrupted_thread_holds():
    event = threading.Event()
    # As in Event.wait, which the handler may interrupt.
    with event._cond:
        set_event(event)
    assert event.wait(10)
