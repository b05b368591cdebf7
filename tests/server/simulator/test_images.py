# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
import time
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from airflow_provider_getimg.simulator.pictures import Picture, draw


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.fixture
def fetched(simulator):
    def fetch(url: str) -> bytes:
        response = simulator.keyless.get(url)
        assert response.status_code == 200, response.text
        return response.content

    return fetch


def test_completed_generation_has_the_documented_fields(simulator):
    response = simulator.post().json()
    item = response["data"][0]
    assert response["id"] == simulator.last()["id"]
    assert re.fullmatch(r"req-[0-9A-Z]{14}", response["id"])
    assert response == {
        "id": response["id"],
        "status": "completed",
        "model": "seedream-5-lite",
        "data": [
            {
                "url": item["url"],
                "mime_type": "image/jpeg",
                "deletes_at": item["deletes_at"],
                "width": 1024,
                "height": 1024,
            }
        ],
        "usage": {"total_cost": 0.04, "unit_price": 0.04, "quantity": 1, "billable_unit": "image"},
    }
    url = urlsplit(item["url"])
    assert re.fullmatch(rf"/v2/downloads/{response['id']}/0", url.path)
    query = parse_qs(url.query)
    assert set(query) == {"exp", "sig"}
    assert re.fullmatch(r"[0-9a-f]{64}", query["sig"][0])
    assert datetime.fromisoformat(item["deletes_at"]).timestamp() == int(query["exp"][0])


@pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
def test_file_is_an_image_of_the_announced_format_and_size(simulator, output_format):
    item = simulator.post(aspect_ratio="16:9", output_format=output_format).json()["data"][0]
    response = simulator.keyless.get(item["url"])
    assert response.headers["content-type"] == item["mime_type"] == f"image/{output_format}"
    assert int(response.headers["content-length"]) == len(response.content)
    picture = opened(response.content)
    assert picture.format == output_format.upper()
    assert picture.size == (item["width"], item["height"]) == (1360, 768)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"resolution": "2K"}, (2048, 2048)),
        ({"aspect_ratio": "2:3"}, (832, 1248)),
        ({"model": "atelier-pro", "aspect_ratio": "21:9", "resolution": "1K"}, (1568, 672)),
        ({"model": "atelier-pro"}, (2048, 2048)),
        ({"model": "preview-unpriced"}, (1360, 768)),
    ],
    ids=["resolution", "ratio", "wide", "default resolution", "default ratio"],
)
def test_image_has_the_requested_or_default_dimensions(simulator, fetched, fields, size):
    item = simulator.post(**fields).json()["data"][0]
    assert (item["width"], item["height"]) == size
    assert opened(fetched(item["url"])).size == size


def test_same_prompt_yields_the_same_image_and_another_prompt_a_different_one(simulator, fetched):
    lake, again, fire = (
        fetched(simulator.url_of(prompt=prompt, output_format="png"))
        for prompt in ("a lake", "a lake", "a fire")
    )
    assert lake == again
    lake_sky, fire_sky = (
        opened(content).resize((8, 8)).crop((0, 0, 8, 3)).tobytes() for content in (lake, fire)
    )
    difference = sum(abs(a - b) for a, b in zip(lake_sky, fire_sky, strict=True)) / len(lake_sky)
    assert difference > 10


def test_drawing_an_image_again_yields_identical_bytes():
    picture = Picture("a lake", "caption", 320, 208, "png")
    assert draw(picture) == draw(picture)


@pytest.mark.parametrize(
    "prompt", ["x", "wörter " * 500, "w" * 4096, "山" * 100, "a\n\n\nb", "\u0000\u200b", " ", "🐈‍⬛ e\u0301"]
)
def test_any_prompt_yields_a_valid_image(simulator, fetched, prompt):
    opened(fetched(simulator.url_of(prompt=prompt)))


def test_download_needs_no_api_key_and_head_announces_its_length(simulator, fetched):
    url = simulator.url_of()
    head = simulator.keyless.head(url)
    content = fetched(url)
    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(content)
    assert head.headers["etag"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: re.sub(r"exp=\d+", "exp=99999999999", url),
        lambda url: re.sub(r"exp=\d+", "exp=soon", url),
        lambda url: re.sub(r"req-[0-9A-Z]+/0", "req-other/0", url),
        lambda url: url.replace("/0?", "/1?"),
        lambda url: url.partition("?")[0],
        lambda url: re.sub(r"sig=.*", "sig=%C3%A9", url),
    ],
    ids=["sig", "exp", "exp not a number", "id", "index", "no query", "sig not ASCII"],
)
def test_tampered_download_url_is_rejected(simulator, tamper):
    response = simulator.keyless.get(tamper(simulator.url_of()))
    assert response.status_code == 403
    assert response.json()["error"]["message"] == "The signature of this URL is invalid."


def test_download_url_expires_at_deletes_at(simulator, fetched):
    simulator.set(media_lifetime=2)
    item = simulator.post().json()["data"][0]
    deletes_at = datetime.fromisoformat(item["deletes_at"]).timestamp()
    fetched(item["url"])
    while (response := simulator.keyless.get(item["url"])).status_code == 200:
        assert time.time() < deletes_at + 1
        time.sleep(0.02)
    assert response.status_code == 410
    assert time.time() >= deletes_at


def test_zero_media_lifetime_makes_urls_expire_at_once(simulator):
    simulator.set(media_lifetime=0)
    assert simulator.keyless.get(simulator.url_of()).status_code == 410


@pytest.mark.parametrize("output_format", ["jpeg", "png", "webp"])
def test_padded_file_has_the_given_size_and_is_still_a_valid_image(simulator, fetched, output_format):
    simulator.set(file_size=3_000_001)
    urls = [simulator.url_of(output_format=output_format, prompt=prompt) for prompt in ("one", "two")]
    one, two = (fetched(url) for url in urls)
    assert len(one) == len(two) == 3_000_001
    assert opened(one).format == opened(two).format == output_format.upper()
    assert one != two
    assert fetched(urls[0]) == one


def test_file_larger_than_the_given_size_is_not_truncated(simulator, fetched):
    simulator.set(file_size=100)
    content = fetched(simulator.url_of())
    assert len(content) > 100
    opened(content)


def test_padding_is_not_held_in_memory(simulator):
    def resident() -> int:
        with open(f"/proc/{simulator.process.pid}/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])

    simulator.set(file_size=300_000_000)
    url = simulator.url_of()
    simulator.keyless.head(url)
    before, size = resident(), 0
    with simulator.keyless.stream("GET", url) as response:
        for chunk in response.iter_raw():
            size += len(chunk)
    assert size == 300_000_000
    assert resident() - before < 30_000


def test_download_takes_at_least_the_download_latency(simulator, fetched):
    url = simulator.url_of()
    simulator.set(download_latency=0.3)
    began = time.monotonic()
    fetched(url)
    assert time.monotonic() - began >= 0.3
