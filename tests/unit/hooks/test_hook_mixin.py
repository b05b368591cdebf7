# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from airflow_provider_getimg.operators.image import GenerateImageOperator


def test_signal_handler_does_not_wait_for_a_lock_that_the_interrupted_thread_holds():
    operator = GenerateImageOperator(task_id="generate", model="m", prompt="A red fox")
    # As in Event.wait, which the handler may interrupt.
    with operator._killed._cond:
        operator.on_kill()
    assert operator._killed.wait(10)
