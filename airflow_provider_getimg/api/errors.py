# SPDX-License-Identifier: Apache-2.0
"""
What can go wrong, one class per outcome.

Each error's message says what happened and what it cost; ``billed``, ``cost`` and ``generation_ids`` hold the latter as
data. The classes know nothing about retries: the table in ``airflow_provider_getimg.retry`` decides on those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

Billed = Literal["no", "unknown", "yes"]

#: How each value of ``GetimgError.billed`` reads at the end of a message.
BILLED_SENTENCE: dict[Billed, str] = {
    "no": "Nothing was billed.",
    "unknown": "It may have been billed.",
    "yes": "It was billed.",
}
#: What a message about too little money adds.
PREPAID = "API credits are prepaid and separate from the consumer plans."


class GetimgError(Exception):
    """
    Root of all errors of this package.

    :param message: What happened, as full sentences. The sentence on billing is added to the text of
        the exception; ``message`` stays without it.
    :param billed: ``"no"``, ``"unknown"`` (it may have been) or ``"yes"``.
    :param status: HTTP status, where there was a response.
    :param code: The API's ``error.code``, such as ``invalid_parameter``.
    :param param: The API's ``error.param``: the field of the request that was wrong.
    :param detail: The API's ``error.message``.
    :param retry_after: Seconds the server asks to wait before another try.
    :param doc_url: The API's ``error.doc_url``: a page about the error.
    :param cost: What was billed, in USD; None where that is not known, or nothing was.
    :param generation_ids: The generations that were billed, as far as they are known.
    """

    #: What holds for the class unless an instance knows better.
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
        #: A response that could not be read, as it came. It may hold signed URLs: not for logs.
        self.received: str | None = None

    def billing_sentence(self) -> str:
        """Tell what the failure cost, for the end of the message."""
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
        Return this error with the bill of what its task has generated so far.

        :param unsaved: The generations whose files are not saved, by id.
        :param cost: What these and the saved ones cost in USD; None where the API didn't say.
        :param saved: The generations whose files are.
        :param unknown: How many more requests may have been billed.
        """
        generation_ids = (*unsaved, *saved)
        if generation_ids:
            self.billed, self.cost, self.generation_ids = "yes", cost, generation_ids
            # The bill comes first, and what is more.
            self.args = (f"{_bill(unsaved, saved, cost, unknown)} {self.message}",)
        elif unknown:
            self.billed = "unknown"
            self.args = (f"{self.message} {self.billing_sentence()}".strip(),)
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
    """A value that was given can't be sent: raised before any request."""


class ConnectionConfigError(GetimgError, ValueError):
    """The Airflow connection can't be used as it is: raised before any request."""


class CostLimitError(GetimgError):
    """The price is over ``max_cost``, or unknown: a spending decision, not a fault. Nothing was sent."""


class LedgerError(GetimgError):
    """The task's state could not be read or written before a request: it was not sent."""


class KilledError(GetimgError):
    """The task was terminated before a request was sent, a video was made, or a file was saved."""


class RequestRefusedError(GetimgError):
    """The API refused the request and will refuse it again (400, 403, 404, 413 and the like)."""


class InvalidRequestError(RequestRefusedError):
    """400: a parameter is missing, unknown to the model, or out of range."""


class AuthenticationError(RequestRefusedError):
    """401: the API key is missing, wrong or revoked."""


class InsufficientBalanceError(RequestRefusedError):
    """402, or a comparison before the first request: the account's balance doesn't cover the cost."""


class ContentPolicyError(RequestRefusedError):
    """422: the prompt or a reference image was refused by the safety filter."""


class RateLimitError(GetimgError):
    """429: too many requests a minute, or too many at once. ``retry_after`` where the API says."""


class NoConnectionError(GetimgError):
    """No connection was made (DNS, refused, TLS, proxy, connect time-out): nothing was sent."""


class UnavailableError(GetimgError):
    """
    A call that bills nothing failed (models, balance, costs, a read from S3), or a failure that may pass stopped a batch.

    Safe to repeat.
    """


#: A call that bills nothing and failed like this is worth repeating.
TRANSIENT_ERRORS = (RateLimitError, UnavailableError, NoConnectionError)


class OutcomeUnknownError(GetimgError):
    """
    A generation was requested and its outcome is unknown: it may have been made and billed.

    A time-out, a dropped connection, 408, 409, 5xx or an unreadable response. The API can't look up a
    generation and has no idempotency key, so only the user can decide to send it again.
    """

    billed: Billed = "unknown"


class PaidFilesGoneError(GetimgError):
    """An earlier try paid for an image or a video whose files were deleted before it could be returned."""

    billed: Billed = "yes"


class VideoPendingError(GetimgError):
    """A video is still being made, and the wait for it is over. A retry goes on waiting for the same video."""

    billed: Billed = "unknown"


class VideoFailedError(GetimgError):
    """The API accepted a video and failed to make it. ``billed`` is what its response says; unknown where it says nothing."""

    billed: Billed = "unknown"


class TransferError(GetimgError):
    """A file could not be saved to S3. Saving is free; the generation that made the file was billed before."""

    def billing_sentence(self) -> str:
        """Say nothing: what was billed is known where the file's generation is."""
        return ""


class FileGoneError(TransferError):
    """The file's download URL has expired: it can't be downloaded again."""


class FileRefusedError(TransferError):
    """The file must not be saved: its URL is refused, it is too large, or it is text or empty."""


class NetworkRefusedError(FileRefusedError):
    """The file's URL leads to an address that the connection does not allow, as all others will."""


class ObjectExistsError(TransferError):
    """Another object is at the key, and ``if_exists`` says to leave it alone."""


class DownloadError(TransferError):
    """A download failed or delivered something else than the file. Safe to repeat."""


class NotAnImageError(DownloadError):
    """
    A download returned a page, a message or nothing instead of the file.

    :param sha256: Of what it returned, in hex.
    """

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class ObjectStoreError(TransferError):
    """S3 could not be reached, or failed to respond to a request. Safe to repeat."""


class StoreRefusedError(ObjectStoreError):
    """S3 refused a request and will refuse it again: no permission, no such bucket, an option that it doesn't take."""


class TransferIncompleteError(TransferError):
    """
    Some of several files were not saved.

    :param failures: The error of each file that was not.
    """

    def __init__(self, message: str, failures: Sequence[GetimgError] = (), **bill: Any) -> None:
        super().__init__(message, **bill)
        self.failures = tuple(failures)


class BatchIncompleteError(GetimgError):
    """
    A batch ended with more failed rows than ``max_failures`` allows.

    :param failures: The error of each row that was not saved, and the one that stopped the batch.
    """

    def __init__(self, message: str, failures: Sequence[GetimgError] = (), **bill: Any) -> None:
        super().__init__(message, **bill)
        self.failures = tuple(failures)

    def billing_sentence(self) -> str:
        """Say nothing: the message begins with what all rows were billed."""
        return ""
