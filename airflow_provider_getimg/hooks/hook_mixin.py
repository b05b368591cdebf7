# SPDX-License-Identifier: Apache-2.0
"""What all operators have in common: their hook, and what their termination sets."""

from __future__ import annotations

import threading
from functools import cached_property

from airflow_provider_getimg.hooks.getimg import GetimgHook


class HookMixin:
    """For an operator with ``getimg_conn_id``."""

    getimg_conn_id: str

    @cached_property
    def hook(self) -> GetimgHook:
        """The hook for ``getimg_conn_id``."""
        return GetimgHook(getimg_conn_id=self.getimg_conn_id)

    @cached_property
    def _killed(self) -> threading.Event:
        # Not in __init__: an operator must stay copyable, and a lock is not.
        return threading.Event()
