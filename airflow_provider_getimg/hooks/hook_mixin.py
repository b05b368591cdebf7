# SPDX-License-Identifier: Apache-2.0
"""Shared by all operators: the hook, and the event that is set on termination."""

from __future__ import annotations

import threading
from functools import cached_property

from airflow_provider_getimg.hooks.getimg import GetimgHook


class HookMixin:
    """Mixin for operators with ``getimg_conn_id``."""

    getimg_conn_id: str

    @cached_property
    def hook(self) -> GetimgHook:
        """The hook for ``getimg_conn_id``."""
        return GetimgHook(getimg_conn_id=self.getimg_conn_id)

    @cached_property
    def _killed(self) -> threading.Event:
        # Not in __init__: an operator must stay copyable, and a lock is not.
        return threading.Event()
