# SPDX-License-Identifier: Apache-2.0
"""Videos: accepted at once as pending, then completed or failed."""

from __future__ import annotations

import io
import time
from typing import Any

import av
import getimg
import httpx
import pytest

MODEL = "seedance-v1-pro"
PATH = "/v2/videos/generations"


def submit(simulator: Any, **fields: Any) -> httpx.Response:
    response: httpx.Response = simulator.http.post(PATH, json={"model": MODEL, "prompt": "a lake", **fields})
    return response


def state(simulator: Any, video_id: str) -> dict[str, Any]:
    response = simulator.http.get(f"{PATH}/{video_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def ended(simulator: Any, video_id: str) -> dict[str, Any]:
    """Return the state of a video once it is no longer pending."""
    deadline = time.monotonic() + 20
    while (response := state(simulator, video_id))["status"] == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return response


def made(simulator: Any, **fields: Any) -> dict[str, Any]:
    return ended(simulator, submit(simulator, **fields).json()["id"])


def test_video_is_accepted_as_pending_and_billed_on_completion(simulator):
    simulator.set(video_latency=0.5)
    taken = submit(simulator)
    assert taken.status_code == 202
    video_id = taken.json()["id"]
    assert taken.json() == {"id": video_id, "status": "pending"} == state(simulator, video_id)
    assert (simulator.last()["billed"], simulator.balance()) == (0, "100.00")
    video = ended(simulator, video_id)
    [item] = video["data"]
    assert (video["status"], video["model"]) == ("completed", MODEL)
    assert video["usage"] == {
        "total_cost": 0.3,
        "unit_price": 0.06,
        "quantity": 5,
        "billable_unit": "video_second",
    }
    assert (item["mime_type"], item["duration"], item["has_sound"]) == ("video/mp4", 5.0, False)
    entry = simulator.last()
    assert (entry["id"], entry["kind"], entry["seconds"], entry["billed"]) == (video_id, "video", 5, 0.3)
    assert simulator.balance() == "99.70"


@pytest.mark.parametrize("fields", [{}, {"model": "reel-sound", "sound": True}], ids=["silent", "sound"])
def test_video_file_matches_the_response(simulator, fields):
    [item] = made(simulator, **fields)["data"]
    content = simulator.keyless.get(item["url"]).content
    with av.open(io.BytesIO(content)) as container:
        [stream] = container.streams.video
        assert (stream.width, stream.height) == (item["width"], item["height"])
        assert float(stream.average_rate) == item["fps"]
        assert container.duration / av.time_base == pytest.approx(item["duration"], abs=0.1)
        assert bool(container.streams.audio) == item["has_sound"]
        assert sum(1 for _ in container.decode(video=0)) == item["fps"] * item["duration"]


def test_same_prompt_yields_the_same_video_and_another_prompt_a_different_one(simulator):
    first, same, other = (
        simulator.keyless.get(made(simulator, prompt=prompt)["data"][0]["url"]).content
        for prompt in ("a lake", "a lake", "a fox")
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"duration": 10, "resolution": "480p"}, 0.3),
        ({"model": "reel-sound", "sound": True}, 0.32),
        ({"model": "reel-sound", "sound": False, "duration": 8}, 0.4),
    ],
    ids=["seconds", "sound", "no sound"],
)
def test_price_depends_on_duration_resolution_and_sound(simulator, fields, cost):
    assert made(simulator, **fields)["usage"]["total_cost"] == cost
    assert simulator.ledger()["billed_total"] == cost


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "seedream-5-lite"}, "model"),
        ({"duration": 7}, "duration"),
        ({"duration": "5"}, "duration"),
        ({"duration": True}, "duration"),
        ({"sound": True}, "sound"),
        ({"sound": "yes"}, "sound"),
        ({"resolution": "8K"}, "resolution"),
        ({"output_format": "mp4"}, "output_format"),
        ({"images": [{"url": "https://a.example/x.png", "role": "reference_image"}]}, "images[0].role"),
        ({"images": [{"url": "https://a.example/x.png", "role": "first_frame"}] * 2}, "images"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unsupported_video_parameter_is_rejected_and_named(simulator, fields, param):
    response = submit(simulator, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert simulator.last()["outcome"] == "refused"


def test_pending_video_counts_toward_the_concurrency_limit_shared_with_images(simulator):
    simulator.set(video_latency=0.5, concurrency=1)
    video_id = submit(simulator).json()["id"]
    assert simulator.post().status_code == submit(simulator).status_code == 429
    ended(simulator, video_id)
    simulator.set(video_latency=0)
    assert simulator.post().status_code == 200
    assert [post["billed"] for post in simulator.ledger()["posts"]] == [0.3, 0, 0, 0.04]


def test_deleted_video_is_not_billed_and_frees_its_slot(simulator):
    simulator.set(video_latency=60, concurrency=1)
    before = simulator.balance()
    video_id = submit(simulator).json()["id"]
    assert submit(simulator).status_code == 429
    assert simulator.http.delete("/_simulator/generations").status_code == 204
    assert simulator.http.get(f"{PATH}/{video_id}").status_code == 404
    assert simulator.http.get("/_simulator/health").json()["running"] == 0
    assert simulator.balance() == before
    simulator.set(video_latency=0)
    made(simulator)


@pytest.mark.parametrize("billed", [False, True])
def test_video_can_fail_with_an_error_whether_or_not_it_is_billed(simulator, billed):
    simulator.fault("video", "failed_video", code="moderation", message="Not this.", billed=billed)
    response = made(simulator)
    usage = response.pop("usage", None)
    error = {"code": "moderation", "message": "Not this."}
    assert response == {"id": response["id"], "status": "failed", "error": error}
    assert (usage is not None) == billed
    assert simulator.ledger()["billed_total"] == (0.3 if billed else 0)
    assert simulator.http.get("/_simulator/health").json()["running"] == 0


@pytest.mark.parametrize(
    ("fault", "billed"),
    [
        ({"kind": "drop_after_billing"}, 0.3),
        ({"kind": "drop_before_billing"}, 0),
        ({"kind": "truncate"}, 0.3),
        ({"kind": "status", "status": 500, "billed": True}, 0.3),
        ({"kind": "status", "status": 500}, 0),
        ({"kind": "html", "status": 502}, 0),
        ({"kind": "hang", "seconds": 0.1}, 0.3),
        ({"kind": "response", "merge": {"status": "queued"}}, 0.3),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_fault_on_a_video_request_determines_whether_the_video_is_billed(simulator, fault, billed):
    simulator.fault("video", **fault)
    try:
        response = submit(simulator)
        assert fault["kind"] != "response" or response.json()["status"] == "queued"
    except httpx.TransportError:
        pass
    simulator.eventually(lambda post: post["outcome"] is not None and post["billed"] == billed)


def test_fault_on_a_video_status_request_affects_only_that_request(simulator):
    video_id = made(simulator)["id"]
    simulator.fault("video_status", "status", status=503)
    simulator.fault("video_status", "response", merge={"data": None})
    assert simulator.http.get(f"{PATH}/{video_id}").status_code == 503
    assert "data" not in state(simulator, video_id)
    assert state(simulator, video_id)["data"]


def test_vendor_client_creates_and_retrieves_completed_and_failed_videos(simulator):
    with getimg.GetimgAI(
        api_key=simulator.api_key, base_url=simulator.url, max_retries=0, _strict_response_validation=True
    ) as client:
        taken = client.videos.generations.create(
            model="reel-sound",
            prompt="a lake",
            duration=4,
            sound=True,
            images=[{"url": "https://example.com/frame.png", "role": "first_frame"}],
        )
        assert taken.status == "pending"
        ended(simulator, taken.id)
        video = client.videos.generations.retrieve(taken.id)
        assert video.status == "completed"
        assert simulator.keyless.get(video.data[0].url).content[4:8] == b"ftyp"
        simulator.fault("video", "failed_video")
        failed = client.videos.generations.create(model="reel-sound", prompt="a lake")
        ended(simulator, failed.id)
        assert client.videos.generations.retrieve(failed.id).error.code == "generation_failed"
