# SPDX-License-Identifier: Apache-2.0
"""Thumbnails, and the cache that holds them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from airflow_provider_getimg.plugin.objects import Cache
from airflow_provider_getimg.plugin.thumbnails import thumbnail

_ORIENTATION = 0x0112
_TURNED = 6


def encoded(width: int, height: int, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("1" if kind == "PNG" else "RGB", (width, height)).save(file, kind, **options)
    return file.getvalue()


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(thumbnail(content).content)).size


def test_image_of_20_megapixels_gets_a_thumbnail():
    assert size_of(encoded(5000, 4000)) == (480, 384)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (5001, 4000),
        # Pillow warns about this size, and raises for the next one.
        pytest.param(
            10_000, 10_000, marks=pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
        ),
        (14_000, 14_000),
    ],
)
def test_image_over_20_megapixels_gets_an_empty_thumbnail(width, height):
    assert thumbnail(encoded(width, height)).content == b""


def test_image_that_pillow_cannot_read_is_returned_unchanged():
    content = encoded(2000, 2000)[:200]
    shown = thumbnail(content)
    assert (shown.content, shown.mime_type) == (content, "image/png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_thumbnail_applies_and_drops_the_exif_orientation(kind):
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    small = Image.open(io.BytesIO(thumbnail(encoded(960, 480, kind, exif=exif)).content))
    assert small.size == (240, 480)
    assert _ORIENTATION not in small.getexif()


def test_full_cache_drops_the_least_recently_used_value():
    cache = Cache(100)
    for key in "abc":
        cache.put(key, key.upper(), 30)
    assert cache.get("a") == "A"
    cache.put("d", "D", 30)
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"]


def test_value_larger_than_the_cache_is_not_cached_and_evicts_nothing():
    cache = Cache(100)
    cache.put("a", "A", 60)
    cache.put("b", "B", 101)
    assert (cache.get("a"), cache.get("b")) == ("A", None)


def test_replaced_value_is_counted_once():
    cache = Cache(100)
    for size in (60, 70, 40):
        cache.put("a", size, size)
    cache.put("b", "B", 60)
    assert (cache.get("a"), cache.get("b")) == (40, "B")
