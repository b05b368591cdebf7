# SPDX-License-Identifier: Apache-2.0
"""The test kit's simulator in the words of the project's tests, failing as the other servers do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from airflow_provider_getimg.testing.server import PROGRAM, SimulatorError, SimulatorProcess
from airflow_provider_getimg.testing.simulator import GetimgSimulator
from devstack.network import clean_environment
from devstack.process import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Simulator(SimulatorProcess):
    """A simulator on a free loopback port, and its control endpoints.

    :param program: Command to start instead of the simulator; the options are appended.
    :param options: Its command-line options, with underscores: ``latency=0.5`` is ``--latency 0.5``.
    """

    #: What the test kit makes of it. Only while it runs.
    kit: GetimgSimulator

    def __init__(self, *, log: Path | None = None, program: Sequence[str] = PROGRAM, **options: Any) -> None:
        super().__init__(log=log, program=program, env=clean_environment(), **options)

    @classmethod
    def seen_through(cls, kit: GetimgSimulator) -> Self:
        """Return one that runs already, as the test kit's fixture started it."""
        simulator = cls(api_key=kit.api_key)
        simulator.kit, simulator.url = kit, kit.url
        return simulator

    def start(self) -> Self:
        """Start the server and wait until it answers.

        :raises devstack.StackError: It died or was not ready in time.
        """
        try:
            super().start()
            self.kit = GetimgSimulator(self)
        except BaseException as error:
            self.end()
            if isinstance(error, SimulatorError):
                raise StackError(error.message, error.log_tail) from None
            raise
        return self

    def ledger(self) -> dict[str, Any]:
        """Return what was sent and billed: ``{"posts": [...], "billed_total": ...}``."""
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
