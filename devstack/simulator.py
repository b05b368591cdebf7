# SPDX-License-Identifier: Apache-2.0
"""The project's simulator of the getimg.ai API as a local server: the test kit's, in the words of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import psutil  # type: ignore[import-untyped]

from airflow_provider_getimg.testing.server import PROGRAM, SimulatorError, SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator
from devstack.network import clean_environment
from devstack.process import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class MeasurableProcess(SimulatorProcess):
    """A process whose memory can be measured as that of the other servers."""

    def descendants(self) -> list[psutil.Process]:
        """Return the simulator itself, while it runs: it has neither a guard nor children."""
        return [psutil.Process(self.pid)] if self.running else []


class Simulator:
    """A simulator on a free loopback port, and its control endpoints.

    :param options: Its command-line options, with underscores: ``latency=0.5`` is
        ``--latency 0.5``.
    :param log: File for its output; by default nobody sees it.
    :param program: Command to start instead of the simulator; the options are appended.
    """

    def __init__(self, *, log: Path | None = None, program: Sequence[str] = PROGRAM, **options: Any) -> None:
        self.process = MeasurableProcess(log=log, program=program, env=clean_environment(), **options)
        self._kit: GetimgSimulator | None = None

    @classmethod
    def seen_through(cls, kit: GetimgSimulator) -> Self:
        """Return one that runs already, as the test kit's fixture started it."""
        simulator = cls()
        simulator._kit = kit
        return simulator

    @property
    def kit(self) -> GetimgSimulator:
        """The same as the test kit shows it. Only while it runs."""
        assert self._kit is not None, "the simulator was not started"
        return self._kit

    @property
    def url(self) -> str:
        """Its base URL; empty until it runs."""
        return self._shown.url

    @property
    def api_key(self) -> str:
        """The key that it takes."""
        return self._shown.api_key

    def start(self) -> Self:
        """Start the server and wait until its control endpoints answer.

        :raises devstack.StackError: It died or was not ready in time.
        """
        try:
            self.process.start()
            self._kit = GetimgSimulator(self.process)
        except BaseException as error:
            self.end()
            if isinstance(error, SimulatorError):
                raise StackError(error.message, error.log_tail) from None
            raise
        return self

    def end(self) -> None:
        """End the server."""
        self.process.end()

    def connection(self) -> str:
        """Return the value for ``AIRFLOW_CONN_GETIMG_DEFAULT``."""
        return self._shown.connection()

    def ledger(self) -> dict[str, Any]:
        """Return what was asked and billed: ``{"posts": [...], "billed_total": ...}``."""
        return self.kit.ledger.raw()

    def clear_ledger(self) -> None:
        """Forget all requests."""
        self.kit.ledger.clear()

    def set_faults(self, faults: Sequence[dict[str, Any]]) -> None:
        """Queue faults for the next requests."""
        self.kit.faults.add(*faults)

    def clear_faults(self) -> None:
        """Drop the faults that are still queued."""
        self.kit.faults.clear()

    def set_balance(self, balance: str) -> None:
        """Set the account's balance, a decimal string in US dollars."""
        self.kit.balance = balance

    def settings(self, **changes: object) -> None:
        """Change settings of the running server."""
        self.kit.settings(**changes)

    def reset(self) -> None:
        """Go back to the start: settings as started, no faults, an empty ledger, enough money."""
        self.kit.reset()

    @property
    def _shown(self) -> SimulatorProcess:
        return self._kit.process if self._kit else self.process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
