# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from airflow_provider_getimg.api.media import (
    EXTENSIONS,
    HEAD_BYTES,
    extension,
    is_whole,
    known_type,
    text_in,
    type_of,
)
from airflow_provider_getimg.simulator.odd import AVIF, TEXTS

SVG = TEXTS["svg"]
PAGE = b"<!DOCTYPE html>\n<html><head><script>alert(1)</script></head></html>"


@cache
def drawn(kind: str, **options: object) -> bytes:
    """Return an image that is more than twice as large as ``HEAD_BYTES``."""
    image = Image.effect_noise((200, 150), 50).convert("RGB")
    out = io.BytesIO()
    image.save(out, kind, **options)
    assert len(out.getvalue()) > 2 * HEAD_BYTES
    return out.getvalue()


@cache
def with_preview() -> bytes:
    """Return a JPEG with a JPEG preview in its metadata, as cameras write it."""
    preview = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(preview, "jpeg")
    picture = drawn("jpeg")
    segment = b"Exif\0\0" + preview.getvalue()
    return picture[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + picture[2:]


PICTURES = {
    "png": ("image/png", lambda: drawn("png")),
    "jpeg": ("image/jpeg", lambda: drawn("jpeg")),
    "progressive jpeg": ("image/jpeg", lambda: drawn("jpeg", progressive=True)),
    "jpeg with a preview": ("image/jpeg", with_preview),
    "webp": ("image/webp", lambda: drawn("webp")),
    "lossless webp": ("image/webp", lambda: drawn("webp", lossless=True)),
    "gif": ("image/gif", lambda: drawn("gif")),
    "avif": ("image/avif", lambda: AVIF),
    "bmp": ("image/bmp", lambda: drawn("bmp")),
    "tiff": ("image/tiff", lambda: drawn("tiff")),
}
each_picture = pytest.mark.parametrize(("kind", "make"), PICTURES.values(), ids=PICTURES.keys())
# The other formats don't mark their end, or their mark isn't checked here.
DELIMITED = [name for name in PICTURES if name not in ("bmp", "tiff")]
each_delimited = pytest.mark.parametrize("make", [PICTURES[name][1] for name in DELIMITED], ids=DELIMITED)


class TestKnownType:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("image/jpeg", "image/jpeg"),
            ("image/jpg", "image/jpeg"),
            ("image/pjpeg", "image/jpeg"),
            ("image/x-png", "image/png"),
            ("image/x-jpg", "image/jpeg"),
            ("IMAGE/PNG", "image/png"),
            (" image/webp ; charset=binary", "image/webp"),
            ("image/x-ms-bmp", None),
            ("image/*", None),
            ("image/svg+xml", None),
            ("application/octet-stream", None),
            ("text/html", None),
            ("image", None),
            ("", None),
            (None, None),
        ],
    )
    def test_mime_type_is_normalized_and_an_unknown_one_is_none(self, name, kind):
        assert known_type(name) == kind

    @given(name=st.text())
    def test_any_text_gives_a_known_type_or_none(self, name):
        assert known_type(name) in {None, *EXTENSIONS}

    def test_each_known_type_has_an_extension_and_others_get_bin(self):
        assert {extension(kind) for kind in EXTENSIONS} == set(EXTENSIONS.values())
        assert extension("text/html") == "bin"


class TestTypeOf:
    @each_picture
    def test_image_type_is_detected_from_the_first_bytes(self, kind, make):
        assert type_of(make()[:HEAD_BYTES]) == kind

    @pytest.mark.parametrize(
        ("head", "kind"),
        [
            (b"\0\0\0\x18ftypmp42", "video/mp4"),
            (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "image/avif"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heicavif", "image/heic"),
            (b"\0\0\0\x18ftypheic", "image/heic"),
            (b"\x1aE\xdf\xa3\x01", "video/webm"),
            (b"\xff\x0a\x7f", "image/jxl"),
            (b"BM is a motor works", None),
            (b"RIFF\0\0\0\0WAVE", None),
            (b"PK\x03\x04", None),
            (b"\0\0\0\x18", None),
            (b"", None),
        ],
        ids=repr,
    )
    def test_other_media_types_are_detected_and_unknown_bytes_give_none(self, head, kind):
        assert type_of(head) == kind

    @given(head=st.binary(max_size=40))
    def test_arbitrary_bytes_never_give_a_type_that_a_browser_executes(self, head):
        assert type_of(head) in {None, *EXTENSIONS}


BOMS = [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf\xef\xbb\xbf"]
BEFORE = [b"", b" \r\n\t", b"\0\0", b"\x0c\n\0 ", b" " * 900, b"\n\xef\xbb\xbf"]


class TestTextIn:
    @pytest.mark.parametrize("bom", BOMS, ids=repr)
    @pytest.mark.parametrize("before", BEFORE, ids=lambda text: repr(text[:6]))
    @pytest.mark.parametrize(
        "page", [PAGE, PAGE.upper(), b"<html\n>", b"<!-- --><body>", b"<head/>"], ids=repr
    )
    def test_web_page_is_detected_after_any_bom_white_space_or_nul(self, bom, before, page):
        assert text_in(bom + before + page) == "a web page"

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "utf-7"])
    def test_web_page_is_detected_in_any_encoding(self, encoding):
        page = "<html><title>Zugriff verweigert</title>".encode(encoding)
        assert text_in(page[:HEAD_BYTES]) == "a web page"

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            (b'{"error": {"message": "expired"}}', "JSON"),
            (b"\xef\xbb\xbf [1]", "JSON"),
            ('{"error": "accès refusé"}'.encode("latin-1"), "JSON"),
            (b"Not found.\n", "text"),
            (b"ok", "text"),
            ("Доступ запрещён".encode(), "text"),
            ("Accès refusé".encode("latin-1"), "text"),
            ("Not found".encode("utf-16"), "text"),
            (("ä" * HEAD_BYTES).encode()[: HEAD_BYTES - 1], "text"),
            (b"alert(1)", "text"),
            (b"\n \t\n", "text"),
            (b"\0" * HEAD_BYTES, "text"),
            (b" " * HEAD_BYTES, "text"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "markup"),
            (b"<script>alert(1)</script>", "markup"),
            (b"\x01\x02<script>alert(1)</script>", "a web page"),
            (b"\x01 \x7f<HTML>", "a web page"),
            (SVG.replace(b"<rect", b"<script>alert(1)</script><rect"), "markup"),
            (SVG.replace(b"<rect", b"<rect onload = 'alert(1)'"), "markup"),
            (SVG.replace(b"<rect", b"<a href='javascript:alert(1)'/><rect"), "markup"),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_json_text_and_markup_are_recognized(self, text, what):
        assert text_in(text) == what

    @pytest.mark.parametrize(
        "head",
        [
            SVG,
            b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg>\n" + SVG,
            b"PK\x03\x04\x14\0\0\0",
            b"\x1f\x8b\x08\0\0",
            b"P6\n64 64\n255\n" + b"\xff" * 900,
            bytes(range(256)),
        ],
        ids=["drawing", "drawing with a head", "zip", "gzip", "bitmap", "bytes"],
    )
    def test_binary_data_and_svg_without_scripts_are_not_text(self, head):
        assert text_in(head) is None

    @pytest.mark.parametrize(
        "head",
        [
            b"<!---->" * 146,
            b"<?xml?>" * 146,
            b" " * 1023 + b"<",
            b"<svg " + b" onx" * 250,
            b"<!doctype>" * 100,
        ],
        ids=lambda head: repr(head[:9]),
    )
    def test_pathological_input_is_scanned_quickly(self, head):
        started = time.monotonic()
        for _ in range(10):
            text_in(head[:HEAD_BYTES])
        assert time.monotonic() - started < 1


class TestIsWhole:
    @each_delimited
    def test_complete_image_is_whole(self, make):
        content = make()
        assert is_whole(io.BytesIO(content), len(content)) is True

    @each_delimited
    @pytest.mark.parametrize("part", [0.5, 0.9, 0.999, 1.0], ids=str)
    def test_truncated_image_is_not_whole(self, make, part):
        content = make()
        cut = content[: min(int(len(content) * part), len(content) - 1)]
        assert is_whole(io.BytesIO(cut), len(cut)) is False

    @pytest.mark.parametrize("name", [name for name in DELIMITED if name != "gif"])
    @pytest.mark.parametrize(
        "padding", [b"\0" * 5000, b"\n", b"\xa5" * 5000], ids=["zeros", "line end", "bytes"]
    )
    def test_trailing_bytes_do_not_make_an_image_look_truncated(self, name, padding):
        content = PICTURES[name][1]() + padding
        assert is_whole(io.BytesIO(content), len(content)) is not False

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK\x03\x04", b"\0\0\0\x18ftypavif\0\0\0\0", b"\xff\xd8\xff\xff" + b"\0" * 50, drawn("tiff")],
        ids=["nothing", "zip", "open end", "no segments", "tiff"],
    )
    def test_file_with_an_unknown_end_is_never_reported_as_whole(self, content):
        assert is_whole(io.BytesIO(content), len(content)) in (None, False)

    @pytest.mark.parametrize(
        "content",
        [
            b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0abcd\0\0\0\0" * 200_000,
            b"\xff\xd8" + b"\xff\xe0\0\x02" * 500_000,
            b"\0\0\0\x18ftypavif" + b"\0" * 12 + b"\0\0\0\x08free" * 300_000,
        ],
        ids=["png", "jpeg", "avif"],
    )
    def test_endless_chunks_are_checked_quickly_and_not_reported_as_truncated(self, content):
        started = time.monotonic()
        assert is_whole(io.BytesIO(content), len(content)) in (None, True)
        assert time.monotonic() - started < 2

    @given(
        content=st.binary(max_size=200),
        start=st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", AVIF[:16]]),
    )
    def test_arbitrary_bytes_raise_no_error(self, content, start):
        content = start + content
        assert is_whole(io.BytesIO(content), len(content)) in (True, False, None)
