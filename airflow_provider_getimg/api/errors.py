# SPDX-License-Identifier: Apache-2.0
"""
Errors, one class per outcome.

Each error's message says what happened and what it cost; ``billed``, ``cost`` and ``generation_ids`` hold the cost as
data. The classes know nothing about retries; see the table in ``airflow_provider_getimg.retry``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

Billed = Literal["no", "unknown", "yes"]

#: The sentence that ends a message, by the value of ``GetimgError.billed``.
BILLED_SENTENCE: dict[Billed, str] = {
    "no": "Nothing was billed.",
    "unknown": "It may have been billed.",
    "yes": "It was billed.",
}
#: Added to messages about an insufficient balance.
PREPAID = "API credits are prepaid and separate from the consumer plans."


class GetimgError(Exception):
    """
    Base class of all errors in this package.

    :param message: What happened, in full sentences. The billing sentence is added to the exception's
        text, not to ``message``.
    :param billed: ``"no"``, ``"unknown"`` (it may have been) or ``"yes"``.
    :param status: HTTP status, if there was a response.
    :param code: The API's ``error.code``, such as ``invalid_parameter``.
    :param param: The API's ``error.param``: the field of the request that was wrong.
    :param detail: The API's ``error.message``.
    :param retry_after: Seconds that the server asks to wait before retrying.
    :param doc_url: The API's ``error.doc_url``: a page about the error.
    :param cost: The amount billed, in USD; None if it is unknown or nothing was billed.
    :param generation_ids: The billed generations, as far as they are known.
    """

    #: The class's default; an instance may override it.
    billed: Billed = "no"

    def __init__(
        self,
        message: str,
        *,
        billed: Billed | None = None,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        detail: str | None = None,
        retry_after: float | None = None,
        doc_url: str | None = None,
        cost: Decimal | None = None,
        generation_ids: Sequence[str] = (),
    ) -> None:
        if billed is not None:
            self.billed = billed
        super().__init__(f"{message} {self.billing_sentence()}".strip())
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.detail = detail
        self.retry_after = retry_after
        self.doc_url = doc_url
        self.cost = cost
        self.generation_ids = tuple(generation_ids)
        #: The raw response that could not be read. It may contain signed URLs: keep it out of logs.
        self.received: str | None = None

    def billing_sentence(self) -> str:
        """Return what the failure cost, as the last sentence of the message."""
        return BILLED_SENTENCE[self.billed]

    def with_bill(
        self,
        unsaved: Sequence[str],
        cost: Decimal | None,
        *,
        saved: Sequence[str] = (),
        unknown: int = 0,
    ) -> Self:
        """
        Add the bill for everything that the task has generated so far, and return this error.

        :param unsaved: Ids of the generations whose files are not saved.
        :param cost: Cost of the unsaved and saved generations together, in USD; None if the API didn't say.
        :param saved: Ids of the generations whose files are saved.
        :param unknown: Number of further requests that may have been billed.
        """
        generation_ids = (*unsaved, *saved)
        if generation_ids:
            self.billed, self.cost, self.generation_ids = "yes", cost, generation_ids
            # The bill comes first, and replaces the billing sentence.
            self.args = (f"{_bill(unsaved, saved, cost, unknown)} {self.message}",)
        elif unknown:
            self.billed = "unknown"
            requests = "An earlier request" if unknown == 1 else f"{unknown} earlier requests"
            self.args = (f"{requests} may have been billed. {self.message}",)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call __init__ again and add the billing sentence twice.
        return (_restore, (type(self), self.args, self.__dict__.copy()))


def _bill(unsaved: Sequence[str], saved: Sequence[str], cost: Decimal | None, unknown: int) -> str:
    amount = "cost unknown" if cost is None else f"{cost} USD"
    if len(unsaved) + len(saved) == 1:
        which = f"Generation {[*unsaved, *saved][0]} was billed ({amount}) and is {'not ' if unsaved else ''}saved."
    else:
        which = f"{len(unsaved) + len(saved)} generations were billed ({amount} together)"
        if saved and unsaved:
            which += f", and {len(unsaved)} {'is' if len(unsaved) == 1 else 'are'} not saved."
        else:
            which += f" and are {'not ' if unsaved else ''}saved."
    if unknown:
        which += f" {unknown} more {'request' if unknown == 1 else 'requests'} may have been billed."
    return which


def _restore(cls: type[GetimgError], args: tuple[Any, ...], state: dict[str, Any]) -> GetimgError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(GetimgError, ValueError):
    """An input value can't be sent. Raised before any request."""


class ConnectionConfigError(GetimgError, ValueError):
    """The Airflow connection can't be used as configured. Raised before any request."""


class ConnectionUnavailableError(ConnectionConfigError):
    """
    A connection, or the credentials for S3, could not be read: they are missing, or a secrets backend is unavailable.

    Airflow and botocore report both alike, so the task is retried.
    """


class CostLimitError(GetimgError):
    """The price exceeds ``max_cost`` or is unknown: a spending decision, not a failure. Nothing was sent."""


class LedgerError(GetimgError):
    """The task's state could not be read or written before a request, which was not sent."""


class KilledError(GetimgError):
    """The task was terminated before a request was sent, a video was made, or a file was saved."""


class RequestRefusedError(GetimgError):
    """The API refused the request and will refuse it again (400, 403, 404, 413 and the like)."""


class InvalidRequestError(RequestRefusedError):
    """400: a parameter is missing, unknown to the model, or out of range."""


class AuthenticationError(RequestRefusedError):
    """401: the API key is missing, wrong or revoked."""


class InsufficientBalanceError(RequestRefusedError):
    """402, or the check before the first request: the account's balance doesn't cover the cost."""


class ContentPolicyError(RequestRefusedError):
    """422: the safety filter refused the prompt or a reference image."""


class RateLimitError(GetimgError):
    """429: too many requests per minute, or too many at once. ``retry_after`` is set if the API sends it."""


class NoConnectionError(GetimgError):
    """No connection was made (DNS, refused, TLS, proxy, connect timeout): nothing was sent."""


class UnavailableError(GetimgError):
    """
    A free call failed (models, balance, costs, a read from S3), or a transient failure stopped a batch.

    Safe to retry.
    """


#: A free call that failed with one of these is worth retrying.
TRANSIENT_ERRORS = (RateLimitError, UnavailableError, NoConnectionError)


class OutcomeUnknownError(GetimgError):
    """
    A generation was requested and its outcome is unknown: it may have been made and billed.

    A timeout, a dropped connection, 408, 409, 5xx or an unreadable response. The API can't look up a
    generation and has no idempotency key, so only the user can decide to send it again.
    """

    billed: Billed = "unknown"


class PaidFilesGoneError(GetimgError):
    """An earlier try paid for an image or a video whose files were deleted before it could be returned."""

    billed: Billed = "yes"


class VideoPendingError(GetimgError):
    """The wait for a video ended while it was still being generated. A retry keeps waiting for the same video."""

    billed: Billed = "unknown"


class VideoFailedError(GetimgError):
    """The API accepted a video but failed to make it. ``billed`` follows its response; unknown if it says nothing."""

    billed: Billed = "unknown"


class TransferError(GetimgError):
    """A file could not be saved to S3. Saving is free; the generation that made the file was already billed."""

    def billing_sentence(self) -> str:
        """Return an empty string: only the code that knows the file's generation knows the bill."""
        return ""


class FileGoneError(TransferError):
    """The file's download URL has expired; the file can't be downloaded again."""


class FileRefusedError(TransferError):
    """The file must not be saved: its URL is refused, it is too large, or it is text or empty."""


class NetworkRefusedError(FileRefusedError):
    """The file's URL leads to an address that the connection does not allow, and so will all others."""


class ObjectExistsError(TransferError):
    """The key already holds another object, and ``if_exists`` forbids replacing it."""


class DownloadError(TransferError):
    """A download failed or returned something other than the file. Safe to retry."""


class NotAnImageError(DownloadError):
    """
    A download returned a web page, a message or nothing instead of the file.

    :param sha256: Hash of the returned content, in hex.
    """

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class ObjectStoreError(TransferError):
    """S3 could not be reached or failed to respond to a request. Safe to retry."""


class StoreRefusedError(ObjectStoreError):
    """S3 refused a request and will refuse it again: no permission, no such bucket, an unsupported option."""


class TransferIncompleteError(TransferError):
    """
    Some of several files were not saved.

    :param failures: The error of each unsaved file.
    """

    def __init__(self, message: str, failures: Sequence[GetimgError] = (), **bill: Any) -> None:
        super().__init__(message, **bill)
        self.failures = tuple(failures)


class BatchIncompleteError(GetimgError):
    """
    A batch ended with more failed rows than ``max_failures`` allows.

    :param failures: The error of each unsaved row, and the one that stopped the batch.
    """

    def __init__(self, message: str, failures: Sequence[GetimgError] = (), **bill: Any) -> None:
        super().__init__(message, **bill)
        self.failures = tuple(failures)

    def billing_sentence(self) -> str:
        """Return an empty string: the message begins with the bill for all rows."""
        return ""
