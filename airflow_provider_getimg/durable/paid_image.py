# SPDX-License-Identifier: Apache-2.0
"""An image that is paid for at most once across the tries of a task, unless the user says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_getimg.durable.paid_request import PaidRequest

if TYPE_CHECKING:
    from airflow_provider_getimg.api.client import GetimgClient
    from airflow_provider_getimg.api.requests import ImageRequest
    from airflow_provider_getimg.api.types import Generation


class PaidImage(PaidRequest):
    """A paid image. The response to its request lists the files."""

    def recorded(self) -> Generation | None:
        """
        Return the response that an earlier try paid for; None if the request must be sent.

        :raises OutcomeUnknownError: Under ``fail``: an earlier try sent the request and saw no response.
        :raises PaidFilesGoneError: Under ``fail``: an earlier try paid for the image, and its files are gone.
        :raises LedgerError: It is unknown what earlier tries did.
        """
        entry = self._previous()
        if entry is None or entry.generation is None:
            return None
        return self._reuse(entry, entry.generation)

    def generate(self, client: GetimgClient, request: ImageRequest, rate_limit_wait: float) -> Generation:
        """
        Send the request, wait out short rate limits, and return the response once it is recorded.

        :param rate_limit_wait: Seconds to wait within the try for rate limits to pass.
        :raises GetimgError: Its message says what happened and whether it was billed.
        """
        return self._send(
            lambda: client.generate_image(request),
            client.abort,
            lambda generation: self.record(generation, request.model),
            rate_limit_wait,
        )

    def record(self, generation: Generation, model: str) -> None:
        """Record the response to the request, and log what was generated."""
        self._ledger.record_response(generation.to_json())
        self._log_made(generation, model)
