# SPDX-License-Identifier: Apache-2.0
import pytest

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.durable.earlier_bill import with_earlier_bill
from airflow_provider_getimg.durable.ledger import Entry

WRONG = "model must be a string, got 3."


def entry(number: int, *, cost: float | None = 0.04, answered: bool = True) -> Entry:
    """Return the entry that a try recorded, with or without a response."""
    response = {
        "id": f"req-{number}",
        "created": 1,
        "data": [{"url": "https://files.example/1"}],
        "usage": {} if cost is None else {"total_cost": cost},
    }
    state = "completed" if answered else "submitted"
    return Entry(state, "f", 3, 1, "2026-11-30T03:00:00+00:00", response=response if answered else None)


@pytest.mark.parametrize(
    ("entries", "billed", "message"),
    [
        ([], "no", f"{WRONG} Nothing was billed."),
        ([entry(1)], "yes", f"Generation req-1 was billed (0.04 USD) and is not saved. {WRONG}"),
        (
            [entry(1, cost=None)],
            "yes",
            f"Generation req-1 was billed (cost unknown) and is not saved. {WRONG}",
        ),
        (
            [entry(1), entry(2)],
            "yes",
            f"2 generations were billed (0.08 USD together) and are not saved. {WRONG}",
        ),
        ([entry(1, answered=False)], "unknown", f"An earlier request may have been billed. {WRONG}"),
        (
            [entry(1), entry(2, answered=False)],
            "yes",
            f"Generation req-1 was billed (0.04 USD) and is not saved. 1 more request may have been billed. {WRONG}",
        ),
        (
            [entry(1, answered=False), entry(2, answered=False), entry(3)],
            "yes",
            f"Generation req-3 was billed (0.04 USD) and is not saved. 2 more requests may have been billed. {WRONG}",
        ),
    ],
)
def test_error_of_a_later_try_includes_the_bill_of_earlier_tries(entries, billed, message):
    error = with_earlier_bill(InvalidInputError(WRONG), entries)
    assert (str(error), error.billed) == (message, billed)
    assert isinstance(error, InvalidInputError)


@pytest.mark.parametrize(
    ("unsaved", "saved", "bill"),
    [
        ([], [entry(1)], "Generation req-1 was billed (0.04 USD) and is saved."),
        ([], [entry(1), entry(2)], "2 generations were billed (0.08 USD together) and are saved."),
        ([entry(1)], [entry(2)], "2 generations were billed (0.08 USD together), and 1 is not saved."),
        (
            [entry(1), entry(2), entry(3, answered=False)],
            [entry(4)],
            "3 generations were billed (0.12 USD together), and 2 are not saved. 1 more request may have been billed.",
        ),
    ],
)
def test_bill_includes_saved_generations(unsaved, saved, bill):
    assert str(with_earlier_bill(InvalidInputError(WRONG), unsaved, saved)) == f"{bill} {WRONG}"
