# SPDX-License-Identifier: Apache-2.0
"""The video operator and its trigger over real sockets; ``tests/integration`` runs them in a real Airflow."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_getimg.api import errors
from airflow_provider_getimg.durable.ledger import KEY
from airflow_provider_getimg.operators.video import GenerateVideoOperator
from airflow_provider_getimg.triggers import video as triggers

if TYPE_CHECKING:
    from airflow_provider_getimg.testing import GetimgSimulator
    from devstack import SeaweedFS

MODEL = "reel-sound"


@pytest.fixture
def api(getimg_default: GetimgSimulator) -> GetimgSimulator:
    getimg_default.settings(video_latency=0.1)
    return getimg_default


def operator(**fields: Any) -> GenerateVideoOperator:
    given = {
        "model": MODEL,
        "prompt": "A red fox",
        "rate_limit_wait": 0,
        "poll_interval": 0.05,
        "timeout": 20,
    }
    return GenerateVideoOperator(task_id="film", **given | fields)


def paid(api: GetimgSimulator) -> list[tuple[str | None, float]]:
    """Return the outcome and the cost of each submission, once all videos are made."""
    deadline = time.monotonic() + 10
    while httpx.get(f"{api.url}/_simulator/health", trust_env=False).json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [(entry.outcome, entry.billed) for entry in api.ledger]


def deferred(task: GenerateVideoOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    # Airflow stores the trigger as JSON. ``dag.test()`` would drop kwargs.
    json.dumps(caught.value.trigger.serialize())
    assert not caught.value.kwargs
    return caught.value


def fire(trigger: Any) -> dict[str, Any]:
    """Return the payload of the only event of a trigger, rebuilt from what Airflow stores."""

    async def collect() -> list[Any]:
        _, kwargs = trigger.serialize()
        return [event async for event in triggers.GetimgVideoTrigger(**kwargs).run()]

    [event] = asyncio.run(collect())
    return dict(event.payload)


def resume(task: GenerateVideoOperator, context: Any, stopped: TaskDeferred) -> Any:
    return getattr(task, stopped.method_name)(context, event=fire(stopped.trigger))


def run(task: GenerateVideoOperator, context: Any) -> Any:
    """Return the result of a task, which is run through its trigger if it is deferrable."""
    return resume(task, context, deferred(task, context)) if task.deferrable else task.execute(context)


def test_response_is_returned_as_plain_json(api, context):
    response = operator(duration="8", sound=True, labels={"sku": "A-17"}).execute(context())
    assert response == json.loads(json.dumps(response))
    [file] = response["data"]
    assert (response["status"], file["duration"], file["has_sound"]) == ("completed", 8.0, True)
    assert response["usage"]["total_cost"] == 0.64
    assert response["request"] == {
        "model": MODEL,
        "prompt": "A red fox",
        "duration": 8,
        "sound": True,
        "labels": {"sku": "A-17"},
    }
    assert paid(api) == [("delivered", 0.64)]


def test_deferred_task_returns_the_response(api, context):
    task, now = operator(deferrable=True), context()
    stopped = deferred(task, now)
    response = resume(task, now, stopped)
    assert (response["status"], response["request"]["prompt"]) == ("completed", "A red fox")
    assert paid(api) == [("delivered", 0.2)]


def test_no_signed_url_or_api_key_is_stored_with_the_deferral(api, context):
    stopped = deferred(operator(deferrable=True, images=["https://a.test/x.png?sig=secret"]), context())
    stored = json.dumps([stopped.trigger.serialize(), fire(stopped.trigger)])
    assert "sig=" not in stored
    assert api.api_key not in stored


def test_states_and_cost_are_logged_without_the_signed_url(api, context, capsys):
    # Longer than the first poll can be late.
    api.settings(video_latency=2)
    response = operator().execute(context())
    log = capsys.readouterr().out
    assert f"Submitted video {response['id']} with model {MODEL}." in log
    assert log.count(f"Video {response['id']} is pending after 0:00:0") == 1
    assert f"Video {response['id']} is completed after 0:00:0" in log
    assert f"Generated {response['id']} with model {MODEL}: 1 file, cost 0.2 USD" in log
    assert "sig=" not in log


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": ""}, "prompt must not be empty."),
        ({"duration": "long"}, "duration must be a whole number of seconds, 1 or more, got 'long'."),
        ({"duration": 5, "max_cost": "1"}, "duration must be 4, 8 seconds for model 'reel-sound', got 5."),
        ({"sound": "loud"}, "sound must be True or False, got 'loud'."),
        ({"timeout": -1}, "timeout must be a number of seconds, 0 or more, got -1."),
        ({"poll_interval": "soon"}, "poll_interval must be a number of seconds, 0.01 or more, got 'soon'."),
        ({"poll_interval": 0}, "poll_interval must be a number of seconds, 0.01 or more, got 0."),
        ({"on_failed_video": "retry"}, "on_failed_video must be 'fail' or 'resubmit', got 'retry'."),
        ({"images": [7]}, "images[0] must be a URL, or {'url': ..., 'role': ...}, got 7."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_input_is_rejected_before_any_request(api, context, store, fields, sentence):
    with pytest.raises(errors.InvalidInputError) as error:
        operator(**fields).execute(context())
    assert str(error.value) == f"{sentence} Nothing was billed."
    assert not api.ledger
    assert store.values == {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_cost": "0.10"}, "A video of model 'reel-sound' costs 0.32 USD, more than max_cost (0.10 USD)"),
        ({"max_cost": "0.19", "sound": False}, "A video of model 'reel-sound' costs 0.20 USD, more than"),
    ],
    ids=["either sound", "no sound"],
)
def test_price_over_max_cost_is_rejected_before_any_request(api, context, fields, sentence):
    with pytest.raises(errors.CostLimitError) as error:
        operator(**fields).execute(context())
    assert str(error.value).startswith(sentence)
    assert not api.ledger
    assert operator(max_cost="0.20", sound=False).execute(context())["usage"]["total_cost"] == 0.2


class TestOneSubmission:
    """Whatever interrupts the wait, the submitted video is the one that is returned."""

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_retry_after_a_timeout_waits_for_the_same_video(self, api, context, deferrable):
        api.settings(video_latency=2)
        with pytest.raises(errors.VideoPendingError) as error:
            run(operator(timeout=0.1, deferrable=deferrable), context())
        [entry] = api.ledger
        assert str(error.value).startswith(f"Video {entry.id} is pending after 0:00:0")
        assert str(error.value).endswith(
            "resumes waiting for it and doesn't submit another. It may have been billed."
        )
        assert operator().execute(context(2))["id"] == entry.id
        assert paid(api) == [("delivered", 0.2)]

    def test_clear_before_delivery_waits_for_the_same_video(self, api, context):
        api.settings(video_latency=2)
        with pytest.raises(errors.VideoPendingError):
            operator(timeout=0).execute(context())
        response = operator().execute(context(2, max_tries=4))
        assert [response["id"]] == [entry.id for entry in api.ledger]
        # A Clear after the delivery makes a new video.
        assert operator().execute(context(3, max_tries=5))["id"] != response["id"]
        assert paid(api) == [("delivered", 0.2)] * 2

    def test_retry_returns_the_recorded_response_without_polling(self, api, context):
        response = operator(do_xcom_push=False).execute(context())
        api.faults.add({"on": "video_status", "kind": "status", "status": 500, "times": 9})
        assert operator().execute(context(2))["id"] == response["id"]
        assert len(api.faults.pending) == 1

    def test_resumed_task_with_a_changed_prompt_does_not_submit_another_video(self, api, context):
        now = context()
        stopped = deferred(operator(deferrable=True), now)
        response = resume(operator(deferrable=True, prompt="Another prompt"), now, stopped)
        assert response["request"]["prompt"] == "A red fox"
        assert paid(api) == [("delivered", 0.2)]

    def test_resumed_task_delivers_its_video_even_if_its_settings_now_render_empty(self, api, context):
        now = context()
        stopped = deferred(operator(deferrable=True), now)
        changed = operator(deferrable=True, on_unknown_outcome="", on_failed_video="", rate_limit_wait="")
        assert resume(changed, now, stopped)["status"] == "completed"
        assert paid(api) == [("delivered", 0.2)]

    def test_resumed_task_returns_its_video_even_if_the_recorded_state_was_lost(self, api, context, store):
        now, task = context(), operator(deferrable=True)
        stopped = deferred(task, now)
        store.values.clear()
        assert resume(task, now, stopped)["id"] == stopped.trigger.wait["video_id"]
        assert paid(api) == [("delivered", 0.2)]

    def test_video_of_a_killed_task_is_returned_by_the_next_try(self, api, context, capsys):
        api.settings(video_latency=1)
        task = operator(poll_interval=10)
        failures: list[BaseException] = []

        def execute() -> None:
            try:
                task.execute(context())
            except BaseException as error:
                failures.append(error)

        running = threading.Thread(target=execute)
        running.start()
        while not task._video_id:
            time.sleep(0.01)
        task.on_kill()
        running.join(10)
        [error] = failures
        assert isinstance(error, errors.KilledError)
        assert str(error).endswith("resumes waiting for it. It may have been billed.")
        assert "is still being generated and will be billed" in capsys.readouterr().out
        assert operator().execute(context(2))["id"] == api.ledger[0].id
        assert paid(api) == [("delivered", 0.2)]


class TestSubmission:
    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "drop_after_billing"},
            {"kind": "status", "status": 500, "billed": True},
            {"kind": "html", "status": 200},
            {"kind": "truncate"},
            {"kind": "response", "merge": {"id": None}},
        ],
        ids=lambda fault: str(fault["kind"]),
    )
    def test_lost_or_unreadable_response_is_an_unknown_outcome_and_not_resent_by_default(
        self, api, context, fault
    ):
        api.faults.add({"on": "video", **fault})
        with pytest.raises(errors.OutcomeUnknownError) as error:
            operator().execute(context())
        assert "To make a new video, clear the task" in str(error.value)
        with pytest.raises(errors.OutcomeUnknownError):
            operator().execute(context(2))
        assert len(api.ledger) == 1
        operator(on_unknown_outcome="resubmit").execute(context(3))
        assert len(api.ledger) == 2

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ({"kind": "status", "status": 400}, errors.InvalidRequestError),
            ({"kind": "status", "status": 402}, errors.InsufficientBalanceError),
            ({"kind": "status", "status": 429, "headers": {"Retry-After": "90"}}, errors.RateLimitError),
        ],
        ids=["400", "402", "429"],
    )
    def test_rejected_submission_is_not_billed_and_a_retry_submits_it_again(self, api, context, fault, error):
        api.faults.add({"on": "video", **fault})
        with pytest.raises(error) as caught:
            operator().execute(context())
        assert str(caught.value).endswith("Nothing was billed.")
        operator().execute(context(2))
        assert paid(api) == [("refused", 0), ("delivered", 0.2)]

    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "response", "status": 200},
            {"kind": "response", "merge": {"status": "queued", "eta": 60}},
            {"kind": "response", "encoding": "gzip"},
            {"kind": "response", "length": "none"},
            {"kind": "response", "length": 9999},
        ],
        ids=["200", "queued", "gzip", "no length", "wrong length"],
    )
    def test_nonstandard_response_with_an_id_is_accepted(self, api, context, fault):
        api.faults.add({"on": "video", **fault})
        assert operator().execute(context())["id"] == api.ledger[0].id
        assert len(api.ledger) == 1

    def test_error_response_with_a_pending_video_is_accepted_and_logged(self, api, context, capsys):
        api.settings(video_latency=0)
        known = operator(do_xcom_push=False).execute(context())["id"]
        body = {"id": known, "status": "pending"}
        api.faults.add({"on": "video", "kind": "status", "status": 500, "billed": False, "body": body})
        assert operator(prompt="Another").execute(context())["id"] == known
        assert "is not as documented: its HTTP status is 500." in capsys.readouterr().out


class TestPolls:
    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "status", "status": 429},
            {"kind": "status", "status": 503},
            {"kind": "html", "status": 200},
            {"kind": "drop_after_billing"},
            {"kind": "truncate"},
            {"kind": "response", "merge": {"status": None, "data": None}},
        ],
        ids=lambda fault: f"{fault['kind']}-{fault.get('status', '')}",
    )
    @pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])
    def test_poll_without_a_usable_response_is_repeated(self, api, context, fault, deferrable):
        api.faults.add({"on": "video_status", "times": 2, **fault})
        response = run(operator(deferrable=deferrable), context())
        assert response["status"] == "completed"
        assert paid(api) == [("delivered", 0.2)]

    def test_trigger_that_cannot_poll_pauses_before_it_hands_back(self, api, context, monkeypatch):
        waiting = deferred(operator(deferrable=True, poll_interval=0.4), context())
        monkeypatch.delenv("AIRFLOW_CONN_GETIMG_DEFAULT")
        began = time.monotonic()
        fire(waiting.trigger)
        assert time.monotonic() - began >= 0.4

    @pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])
    def test_unauthorized_poll_reports_a_possible_bill_and_a_retry_returns_the_same_video(
        self, api, context, deferrable
    ):
        api.faults.add({"on": "video_status", "kind": "status", "status": 401, "times": 1 + deferrable})
        with pytest.raises(errors.AuthenticationError) as error:
            run(operator(deferrable=deferrable), context())
        assert str(error.value).startswith(
            f"Video {api.ledger[0].id} was submitted, and its state can't be read: "
        )
        assert (
            "To abandon it and submit another, delete 'getimg_generation' from the task's state first."
            in str(error.value)
        )
        assert str(error.value).endswith("It may have been billed.")
        assert operator().execute(context(2))["id"] == api.ledger[0].id
        assert paid(api) == [("delivered", 0.2)]


def test_clear_of_another_task_does_not_submit_the_video_again(
    simulator: GetimgSimulator, seaweedfs: SeaweedFS, bucket: str, context, monkeypatch
):
    simulator.settings(video_latency=60)
    connection = simulator.process.connection(state_folder=f"s3://{bucket}/state")
    monkeypatch.setenv("AIRFLOW_CONN_GETIMG_DEFAULT", connection)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", seaweedfs.aws_connection())

    def started(hour: int, try_number: int = 1) -> dict[str, Any]:
        start = datetime(2026, 11, 29, hour, tzinfo=UTC)
        made = context(try_number) | {
            "dag_run": SimpleNamespace(start_date=start, run_after=start, clear_number=hour - 1)
        }
        del made["task_state_store"]
        return made

    task = operator(deferrable=True, timeout=0.2)
    stopped = deferred(task, started(1))
    # Clearing another task restarts the run while this task is deferred.
    with pytest.raises(errors.VideoPendingError):
        resume(task, started(2), stopped)
    with pytest.raises(errors.VideoPendingError):
        operator(timeout=0.2).execute(started(2, 2))
    assert len(simulator.ledger) == 1


class TestFailedVideo:
    @pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])
    def test_is_reported_with_the_api_reason_and_resubmitted_only_after_a_clear(
        self, api, context, deferrable
    ):
        message = "Not this:\nhttps://a.test/x.png?X-Amz-Signature=secret"
        api.faults.failed_video(code="moderation", message=message)
        with pytest.raises(errors.VideoFailedError) as error:
            run(operator(deferrable=deferrable), context())
        assert str(error.value).startswith(
            f"getimg.ai could not generate video {api.ledger[0].id} (moderation: Not this: https://a.test/x.png?...). To make "
            "a new one, clear"
        )
        with pytest.raises(errors.VideoFailedError):
            operator().execute(context(2))
        assert len(api.ledger) == 1
        assert operator().execute(context(3, max_tries=5))["status"] == "completed"
        assert paid(api) == [("delivered", 0), ("delivered", 0.2)]

    def test_is_reported_with_its_cost_if_the_api_billed_it(self, api, context):
        api.faults.failed_video(billed=True)
        with pytest.raises(errors.VideoFailedError) as error:
            operator().execute(context())
        assert str(error.value).endswith("It was billed.")
        assert (float(error.value.cost), error.value.generation_ids) == (0.2, (api.ledger[0].id,))

    def test_is_resubmitted_by_a_retry_with_on_failed_video_resubmit(self, api, context, capsys):
        api.faults.failed_video()
        task = operator(on_failed_video="resubmit")
        with pytest.raises(errors.VideoFailedError, match="A retry submits it again"):
            task.execute(context())
        assert task.execute(context(2))["status"] == "completed"
        assert "it is submitted again now, and billed" in capsys.readouterr().out
        assert paid(api) == [("delivered", 0), ("delivered", 0.2)]

    def test_is_resubmitted_by_a_retry_even_if_its_id_could_not_be_recorded(
        self, api, context, store, monkeypatch
    ):
        write = store.set

        def refuse_the_id(key: str, value: Any, **options: Any) -> None:
            if value["state"] == "pending":
                raise ConnectionError("the API server is away")
            write(key, value, **options)

        monkeypatch.setattr(store, "set", refuse_the_id)
        api.faults.failed_video()
        with pytest.raises(errors.VideoFailedError):
            operator(on_failed_video="resubmit").execute(context())
        assert operator(on_failed_video="resubmit").execute(context(2))["status"] == "completed"


def test_retry_fails_if_the_files_of_a_paid_video_were_deleted(api, context):
    api.settings(media_lifetime=1)
    operator(do_xcom_push=False).execute(context())
    time.sleep(1.1)
    with pytest.raises(errors.PaidFilesGoneError):
        operator().execute(context(2))
    assert len(api.ledger) == 1


def test_triggers_in_one_process_share_one_reader_of_video_states(api, context, monkeypatch):
    api.settings(video_latency=0.5)
    opened = []
    original = triggers._opened
    monkeypatch.setattr(triggers, "_opened", lambda conn: opened.append(conn) or original(conn))
    stopped = [deferred(operator(deferrable=True, prompt=f"Fox {n}"), context()) for n in range(5)]

    async def fire_all() -> list[Any]:
        return await asyncio.gather(*(anext(one.trigger.run()) for one in stopped))

    events = asyncio.run(fire_all())
    assert [event.payload["video_id"] for event in events] == [
        one.trigger.wait["video_id"] for one in stopped
    ]
    assert opened == ["getimg_default"]
    assert triggers._shared == {}


def test_cancelled_trigger_does_not_affect_another_one(api, context):
    api.settings(video_latency=0.5)
    first, second = (deferred(operator(deferrable=True, prompt=p), context()) for p in ("a", "b"))

    async def cancel_one() -> Any:
        cancelled = asyncio.create_task(anext(first.trigger.run()))
        going_on = asyncio.create_task(anext(second.trigger.run()))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return await going_on

    assert asyncio.run(cancel_one()).payload == second.trigger.wait
    assert triggers._shared == {}


def test_id_of_a_pending_video_is_recorded_in_the_ledger(api, context, store):
    api.settings(video_latency=2)
    with pytest.raises(errors.VideoPendingError):
        operator(timeout=0).execute(context())
    entry = json.loads(store.values[KEY])
    assert (entry["state"], entry["video_id"]) == ("pending", api.ledger[0].id)
