# SPDX-License-Identifier: Apache-2.0
"""The state of a running simulator."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from airflow_provider_getimg.simulator.account import DEFAULT_BALANCE, Account, Limits
from airflow_provider_getimg.simulator.auth import DEFAULT_API_KEY
from airflow_provider_getimg.simulator.faults import FaultQueue
from airflow_provider_getimg.simulator.fields import BLOCKED_WORDS
from airflow_provider_getimg.simulator.media import Media
from airflow_provider_getimg.simulator.request_log import RequestLog
from airflow_provider_getimg.simulator.settings import Settings

if TYPE_CHECKING:
    from airflow_provider_getimg.simulator.videos import Video

LOOPBACK = "127.0.0.1"


@dataclass
class Simulator:
    """One workspace of the API: its key, account, files, ledger and faults.

    :param host: The address or name that it listens on.
    :param forgotten: Set, and replaced, when the images in progress are forgotten.
    """

    host: str = LOOPBACK
    api_key: str = DEFAULT_API_KEY
    settings: Settings = field(default_factory=Settings)
    account: Account = field(default_factory=lambda: Account(Decimal(DEFAULT_BALANCE)))
    blocked_words: tuple[str, ...] = BLOCKED_WORDS
    ledger: RequestLog = field(default_factory=RequestLog)
    faults: FaultQueue = field(default_factory=FaultQueue)
    media: Media = field(default_factory=Media)
    videos: dict[str, Video] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = Limits(self.settings)
