# SPDX-License-Identifier: Apache-2.0
"""The sensor and its trigger over real sockets; ``tests/integration`` runs them in a real Airflow."""

from __future__ import annotations

import asyncio
import json
import threading
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
    timezone,
)

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.hooks.getimg import GetimgHook
from airflow_provider_getimg.retry import RETRY_POLICY
from airflow_provider_getimg.sensors.balance import GetimgBalanceSensor
from airflow_provider_getimg.triggers.balance import CONNECTION_READS, GetimgBalanceTrigger
from airflow_provider_getimg.version_compat import AIRFLOW_VERSION, RetryAction
from tests.support.raw_servers import RawServer, response

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from airflow.triggers.base import TriggerEvent

BUSY = response(b'{"error": {"message": "Slow down.", "code": "rate_limit"}}', status="429 Too Many Requests")
DOWN = response(b"<html>", status="502 Bad Gateway")
NOT_JSON = response(b"<html>")

CONTEXT = {"ti": SimpleNamespace(try_number=1, max_tries=3)}


def balance_of(amount: str, currency: str = "USD") -> bytes:
    return response(json.dumps({"balance": amount, "currency": currency}).encode())


class Account(RawServer):
    """A server that sends one response per request, in order, and repeats the last one. For None, it sends nothing."""

    def __init__(self, *responses: bytes | None) -> None:
        super().__init__(b"")
        self.responses = list(responses)
        self.hung = threading.Event()

    def serve(self, visitor: socket.socket) -> None:
        self.read(visitor)
        given = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if given is None:
            self.hung.set()
            visitor.recv(1)
        else:
            visitor.sendall(given)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch):
    """Yield a function that starts a server with these responses and points ``getimg_default`` to it."""
    servers = []

    def start(*responses: bytes | None) -> Account:
        server = Account(*responses).__enter__()
        servers.append(server)
        connection = {"conn_type": "getimg", "password": "sk_account", "host": server.url}
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", json.dumps(connection))
        return server

    yield start
    for server in servers:
        server.__exit__()


def sensor(**kwargs: Any) -> GetimgBalanceSensor:
    return GetimgBalanceSensor(task_id="balance", **{"minimum": 5, "poke_interval": 0, **kwargs})


def trigger(**kwargs: Any) -> GetimgBalanceTrigger:
    return GetimgBalanceTrigger(
        **{"minimum": "5", "poke_interval": 0, "getimg_conn_id": "getimg_default"} | kwargs
    )


def fire(waiting: GetimgBalanceTrigger) -> dict[str, str]:
    """Run a trigger, and return the payload of its only event."""

    async def collect() -> Sequence[TriggerEvent]:
        return [event async for event in waiting.run()]

    [event] = asyncio.run(collect())
    return event.payload


class TestBalance:
    @pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
    def test_sufficient_balance_is_returned_at_once(self, getimg_default, deferrable):
        getimg_default.balance = "12.34"
        assert sensor(minimum="12.34", deferrable=deferrable).execute(CONTEXT) == 12.34
        assert not getimg_default.ledger

    def test_poke_logs_the_balance_and_the_minimum(self, getimg_default, capsys):
        getimg_default.balance = "4.99"
        with pytest.raises(AirflowSensorTimeout):
            sensor(minimum=" 5.00 ", timeout=0).execute(CONTEXT)
        assert "Balance: 4.99 USD, minimum: 5.00 USD." in capsys.readouterr().out

    def test_topped_up_balance_ends_the_wait(self, getimg_default):
        getimg_default.balance = "4.99"
        waiting = sensor()
        assert not waiting.poke(CONTEXT)
        getimg_default.balance = "5"
        assert waiting.poke(CONTEXT).xcom_value == 5.0

    def test_balance_in_another_currency_fails_at_once(self, account):
        account(balance_of("100", "EUR"))
        with pytest.raises(errors.ConnectionConfigError, match=r"must be in USD, got 'EUR'"):
            sensor().execute(CONTEXT)


@pytest.mark.parametrize(
    "minimum", ["", "five", "-0.01", -1, "1_000", True, None, "nan", "inf", "{{ x }}"], ids=repr
)
@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
def test_invalid_minimum_is_rejected_before_any_request(account, minimum, deferrable):
    server = account(balance_of("100"))
    with pytest.raises(errors.InvalidInputError) as error:
        sensor(minimum=minimum, deferrable=deferrable).execute(CONTEXT)
    assert (
        error.value.message
        == f"minimum must be an amount in USD, 0 or more, such as '0.05', got {minimum!r}."
    )
    assert not server.visits


TEMPORARY = {"429": BUSY, "502": DOWN, "unreadable": NOT_JSON, "dropped": b""}


@pytest.mark.parametrize("first", TEMPORARY.values(), ids=TEMPORARY)
class TestTemporaryFailure:
    def test_sensor_keeps_waiting_after_a_failed_check(self, account, first, capsys):
        server = account(first, balance_of("1"), balance_of("7.5"))
        assert sensor().execute(CONTEXT) == 7.5
        assert server.visits == 3
        assert "The balance is unknown at the moment: " in capsys.readouterr().out

    def test_trigger_keeps_waiting_after_a_failed_check(self, account, first):
        server = account(first, balance_of("1"), balance_of("7.5"))
        assert fire(trigger()) == {"balance": "7.5"}
        assert server.visits == 3

    def test_trigger_keeps_waiting_while_the_connection_cannot_be_read(self, account, first, monkeypatch):
        account(first, balance_of("7.5"))
        read, failures = GetimgHook.get_connection, iter([AirflowNotFoundException("a backend is away")])

        def flaky(conn_id: str) -> Any:
            for failure in failures:
                raise failure
            return read(conn_id)

        monkeypatch.setattr(GetimgHook, "get_connection", staticmethod(flaky))
        assert fire(trigger()) == {"balance": "7.5"}

    def test_sensor_defers_after_a_failed_check(self, account, first):
        account(first)
        with pytest.raises(TaskDeferred):
            sensor(deferrable=True).execute(CONTEXT)


def test_trigger_logs_that_the_connection_cannot_be_read_and_gives_up(monkeypatch, capsys):
    monkeypatch.delenv("AIRFLOW_CONN_GETIMG_DEFAULT", raising=False)
    assert fire(trigger())["error"] == "ConnectionUnavailableError"
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("Connection 'getimg_default' does not exist") == CONNECTION_READS - 1


def test_sensor_keeps_waiting_if_the_connection_is_refused(account):
    account(balance_of("1")).__exit__()
    assert not sensor().poke(CONTEXT)


class TestWrongKey:
    @pytest.fixture(autouse=True)
    def wrong_key(self, simulator, monkeypatch) -> None:
        connection = {"conn_type": "getimg", "password": "sk_wrong", "host": simulator.url}
        monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", json.dumps(connection))

    @pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
    @pytest.mark.parametrize("soft_fail", [False, True], ids=["", "soft_fail"])
    def test_fails_the_task_at_once_even_with_soft_fail(self, deferrable, soft_fail):
        waiting = sensor(deferrable=deferrable, soft_fail=soft_fail)
        with pytest.raises(errors.AuthenticationError, match="401 invalid_api_key"):
            waiting.execute(CONTEXT)

    def test_is_not_retried(self):
        waiting = sensor()
        with pytest.raises(errors.AuthenticationError) as error:
            waiting.execute(CONTEXT)
        assert waiting.retry_policy is RETRY_POLICY
        assert waiting.retry_policy.evaluate(error.value, 1, 3).action is RetryAction.FAIL

    def test_wrong_key_found_by_the_trigger_fails_the_task_with_the_same_error(self):
        event = fire(trigger())
        assert "sk_wrong" not in str(event)
        waiting = sensor()
        with pytest.raises(errors.AuthenticationError) as of_trigger:
            waiting.execute_complete(CONTEXT, event)
        with pytest.raises(errors.AuthenticationError) as of_sensor:
            waiting.execute(CONTEXT)
        assert str(of_trigger.value) == str(of_sensor.value)


class TestModes:
    def test_reschedule_mode_reschedules_the_task_instead_of_waiting(self, getimg_default, context):
        getimg_default.balance = "1"
        tried = context()
        tried["ti"].get_first_reschedule_date = lambda _: timezone.utcnow()
        with pytest.raises(AirflowRescheduleException):
            sensor(mode="reschedule").execute(tried)

    def test_deferrable_mode_serializes_the_connection_id_and_no_credentials(self, getimg_default):
        getimg_default.balance = "1"
        with pytest.raises(TaskDeferred) as deferred:
            sensor(minimum=Decimal("5.5"), deferrable=True, poke_interval=30, timeout=3600).execute(CONTEXT)
        assert deferred.value.timeout.total_seconds() == 3600
        path, kwargs = deferred.value.trigger.serialize()
        assert path == f"{GetimgBalanceTrigger.__module__}.{GetimgBalanceTrigger.__name__}"
        assert kwargs == {"minimum": "5.5", "poke_interval": 30, "getimg_conn_id": "getimg_default"}
        assert GetimgBalanceTrigger(**kwargs).serialize() == (path, kwargs)

    def test_deferrable_mode_returns_the_balance_from_the_trigger(self):
        assert sensor().execute_complete(CONTEXT, {"balance": "7.50"}) == 7.5

    @pytest.mark.parametrize(
        ("soft_fail", "ends_with"),
        [(False, AirflowSensorTimeout), (True, AirflowSkipException)],
        ids=["", "soft_fail"],
    )
    def test_timeout_fails_the_task_or_skips_it_with_soft_fail(self, getimg_default, soft_fail, ends_with):
        getimg_default.balance = "1"
        waiting = sensor(timeout=0, soft_fail=soft_fail)
        with pytest.raises(ends_with):
            waiting.execute(CONTEXT)
        # As Airflow resumes a task whose trigger timed out. Airflow 3.1.2 ignores soft_fail there.
        with pytest.raises(AirflowSensorTimeout if AIRFLOW_VERSION == "3.1.2" else ends_with):
            waiting.resume_execution("__fail__", {"error": "Trigger timeout"}, {})


class TestTrigger:
    def test_does_not_block_the_event_loop_during_a_request(self, account):
        server = account(None)

        async def others_run() -> None:
            running = asyncio.create_task(anext(trigger().run()))
            # A blocked loop would never get here.
            while not server.hung.is_set():
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        # Closing the loop waits for its threads: a request that isn't aborted would take 30 seconds.
        asyncio.run(asyncio.wait_for(others_run(), 20))

    def test_closes_its_client_after_each_check(self, account, monkeypatch):
        from airflow_provider_getimg.api.client import GetimgClient

        closed = []
        close = GetimgClient.close
        monkeypatch.setattr(GetimgClient, "close", lambda client: (closed.append(client), close(client)))
        account(balance_of("1"), balance_of("9"))
        fire(trigger())
        assert len(closed) == len(set(closed)) == 2


def test_a_request_in_flight_ends_when_the_task_is_killed(account, capsys):
    server = account(None)
    waiting = sensor()
    killer = threading.Thread(target=lambda: (server.hung.wait(20), waiting.on_kill()))
    killer.start()
    assert not waiting.poke(CONTEXT)
    killer.join()
    # Not because it timed out.
    assert "broke after the request was sent" in capsys.readouterr().out
    waiting.on_kill()
