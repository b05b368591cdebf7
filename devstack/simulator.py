# SPDX-License-Identifier: Apache-2.0
"""The project's simulator of the getimg.ai API as a local server, and its control endpoints."""

from __future__ import annotations

import json
import re
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from devstack.network import LOOPBACK, clean_environment
from devstack.process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

READY_SECONDS = 30.0
BALANCE = "100.00"
PROGRAM = (sys.executable, "-m", "airflow_provider_getimg.simulator")


class Simulator:
    """``python -m airflow_provider_getimg.simulator`` on a free loopback port.

    :param options: Its command-line options, with underscores: ``latency=0.5`` is
        ``--latency 0.5``.
    :param log: File for its output; by default a temporary one.
    :param program: Command to start instead of the simulator; the options are appended.
    """

    def __init__(
        self, *, log: Path | None = None, program: Sequence[str] = PROGRAM, **options: object
    ) -> None:
        self.url = ""
        self.api_key = str(options.pop("api_key", f"sk_{secrets.token_hex(16)}"))
        self.process: GuardedProcess | None = None
        self._defaults: dict[str, Any] = {}
        self._log = log
        self._program = program
        self._options = options

    def start(self) -> Self:
        """Start the server and wait until its control endpoints answer.

        :raises devstack.StackError: It died or was not ready in time.
        """
        home = Path(tempfile.mkdtemp(prefix="getimg-simulator-"))
        log = self._log or home / "simulator.log"
        seen = log.stat().st_size if log.exists() else 0
        options = {"host": LOOPBACK, "port": 0, "api_key": self.api_key} | self._options
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self.process = GuardedProcess(
            "The simulator",
            [*self._program, *arguments],
            log=log,
            env=clean_environment(),
            grace=2.0,
            remove=[home],
        )
        try:
            self.url = self.process.wait_until(lambda: self._announced_url(log, seen), timeout=READY_SECONDS)
            self.process.wait_until(self._answers, timeout=READY_SECONDS)
            self._defaults = self._control("GET", "settings").json()
        except BaseException:
            self.end()
            raise
        return self

    def end(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.end()

    def connection(self) -> str:
        """Return the value for ``AIRFLOW_CONN_GETIMG_DEFAULT``."""
        return json.dumps({"conn_type": "getimg", "host": self.url, "password": self.api_key})

    def ledger(self) -> dict[str, Any]:
        """Return what was asked and billed: ``{"posts": [...], "billed_total": ...}``."""
        ledger: dict[str, Any] = self._control("GET", "ledger").json()
        return ledger

    def clear_ledger(self) -> None:
        """Forget all requests."""
        self._control("DELETE", "ledger")

    def set_faults(self, faults: Sequence[dict[str, Any]]) -> None:
        """Queue faults for the next requests."""
        self._control("POST", "faults", {"faults": list(faults)})

    def clear_faults(self) -> None:
        """Drop the faults that are still queued."""
        self._control("DELETE", "faults")

    def set_balance(self, balance: str) -> None:
        """Set the account's balance, a decimal string in US dollars."""
        self._control("PUT", "balance", {"balance": balance})

    def settings(self, **changes: object) -> None:
        """Change settings of the running server."""
        self._control("PUT", "settings", changes)

    def reset(self) -> None:
        """Go back to the start: settings as started, no faults, an empty ledger, enough money."""
        self.clear_faults()
        self.settings(**self._defaults)
        self.set_balance(BALANCE)
        self.clear_ledger()

    def _control(self, method: str, path: str, body: object = None) -> httpx.Response:
        with httpx.Client(trust_env=False) as client:
            response = client.request(method, f"{self.url}/_simulator/{path}", json=body)
        return response.raise_for_status()

    def _announced_url(self, log: Path, seen: int) -> str | None:
        output = log.read_bytes()[seen:].decode(errors="replace")
        # Only a whole line: half a port number looks like a port number.
        match = re.search(rf"(http://{re.escape(LOOPBACK)}:\d+)\S*\n", output)
        return match and match[1]

    def _answers(self) -> bool:
        try:
            self._control("GET", "health")
        except httpx.HTTPError:
            return False
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
