# SPDX-License-Identifier: Apache-2.0
"""
Detect the type of a file, from its first bytes and from the MIME type that a server gives.

The bytes decide. Servers spell MIME types in many ways, get them wrong, or leave them out; and a type that a browser
would run, such as ``text/html``, must not become an object's content type.
"""

from __future__ import annotations

import codecs
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

#: File extension by MIME type, as users expect it at the end of a key. Objects get no other image or video type.
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/jxl": "jxl",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
}
#: The type of anything that is not a known image or video.
OCTET_STREAM = "application/octet-stream"

_OTHER_NAMES = {
    "image/jpg": "image/jpeg",
    "image/jpe": "image/jpeg",
    "image/jfif": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/pjp": "image/jpeg",
    "image/apng": "image/png",
    "image/x-webp": "image/webp",
    "image/heif": "image/heic",
    "image/tif": "image/tiff",
    "video/x-m4v": "video/mp4",
}
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"hevc": "image/heic",
    b"mif1": "image/heic",
    b"msf1": "image/heic",
    b"qt  ": "video/quicktime",
}

#: The most bytes that :func:`type_of` and :func:`text_in` need from a file's start.
HEAD_BYTES = 1024

# Give up on a file that seems to have more chunks, segments or boxes.
_MAX_PIECES = 100_000
_PIECE_BYTES = 1024 * 1024

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"+/v8", b"+/v9")
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# Atomic group: backtracking into comments that already matched would take exponential time.
_SVG = re.compile(rb"(?>(?:<\?xml[^>]*>|<!--.*?-->|<!doctype[^>]*>|\s)*)<svg[\s>]", re.IGNORECASE | re.DOTALL)
# Browsers skip the leading characters.
_PAGE = re.compile(rb"[\x00-\x20\x7f]*<(?:!doctype html|html|head|body|script)\b", re.IGNORECASE)
_ACTIVE = re.compile(rb"<\s*script|javascript:|\son\w+\s*=", re.IGNORECASE)


def known_type(mime_type: str | None) -> str | None:
    """
    Return the standard spelling of a server's MIME type; None if it is not in :data:`EXTENSIONS`.

    ``image/jpeg`` for ``Image/JPG; q=1``; None for ``image/*``, ``application/octet-stream`` and ``text/html``.
    """
    name = (mime_type or "").partition(";")[0].strip().lower()
    spellings = (_OTHER_NAMES.get(each, each) for each in (name, name.replace("/x-", "/", 1)))
    return next((known for known in spellings if known in EXTENSIONS), None)


def type_of(head: bytes) -> str | None:
    """Return the MIME type that a file's first bytes indicate; None if they match no known type."""
    for start, kind in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"\xff\x0a", "image/jxl"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"\x1aE\xdf\xa3", "video/webm"),
    ):
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"mif1", b"msf1") and b"avif" in head[16 : int.from_bytes(head[:4], "big")]:
            return "image/avif"
        return _BRANDS.get(head[8:12], "video/mp4")
    # A text may start with these two letters too: also check the four reserved zero bytes of a bitmap's header.
    if head[:2] == b"BM" and head[6:10] == b"\x00\x00\x00\x00":
        return "image/bmp"
    return None


def text_in(head: bytes) -> str | None:
    """
    Return the kind of text for a message, such as ``a web page``, ``JSON`` or ``text``; None if it isn't text.

    A web page may begin with a byte order mark, white space or NUL characters, which browsers skip. An SVG is text by
    its bytes but an image by its use: here it counts as text only if it runs scripts.
    """
    plain = head.replace(b"\x00", b"")
    for mark in _BYTE_ORDER_MARKS:
        plain = plain.removeprefix(mark)
    plain = plain.lstrip(b" \t\r\n\x0b\x0c\xef\xbb\xbf")
    if plain.startswith(b"<"):
        if _SVG.match(plain) and not _ACTIVE.search(plain):
            return None
        return (
            "a web page"
            if re.search(rb"<!doctype html|<html|<head|<body", plain, re.IGNORECASE)
            else "markup"
        )
    if _CONTROLS.search(head):
        return "a web page" if _PAGE.match(plain) else None
    # Whatever its character set, the beginning of a page or a message is mostly ASCII.
    if sum(byte < 0x80 for byte in plain) < len(plain) / 2 and not _is_utf8(plain):
        return None
    return "JSON" if plain.startswith((b"{", b"[")) else "text"


def _is_utf8(text: bytes) -> bool:
    try:
        # The last character may be incomplete.
        codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return True


def is_whole(file: BinaryIO, size: int) -> bool | None:
    """
    Return whether a file is complete according to its format; None if unknown. Data after a PNG, JPEG or WebP does not matter.

    :param file: The file; its position changes.
    :param size: The file's size in bytes.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    match type_of(head):
        case "image/png":
            return _png_ends(file)
        case "image/jpeg":
            return _jpeg_ends(file)
        case "image/webp":
            return size >= int.from_bytes(head[4:8], "little") + 8
        case "image/gif":
            file.seek(max(0, size - HEAD_BYTES))
            return file.read().rstrip(b"\x00").endswith(b";")
        case "image/avif" | "image/heic" | "video/mp4" | "video/quicktime":
            return _boxes_end(file, size)
    return None


def _png_ends(file: BinaryIO) -> bool | None:
    """Follow the length-prefixed chunks to the one that ends the image."""
    file.seek(8)
    for _ in range(_MAX_PIECES):
        length, name = file.read(4), file.read(4)
        if len(name) < 4:
            return False
        if name == b"IEND":
            return len(file.read(4)) == 4
        file.seek(int.from_bytes(length, "big") + 4, os.SEEK_CUR)
    return None


def _jpeg_ends(file: BinaryIO) -> bool | None:
    """Skip the segments, which may hold a preview with its own end marker, and search the rest for the end marker."""
    file.seek(2)
    for _ in range(_MAX_PIECES):
        marker = file.read(4)
        if len(marker) < 4:
            return False
        length = int.from_bytes(marker[2:], "big")
        if marker[0] != 0xFF or length < 2:
            return None
        file.seek(length - 2, os.SEEK_CUR)
        if marker[1] == 0xDA:
            break
    else:
        return None
    last = b""
    while piece := file.read(_PIECE_BYTES):
        if b"\xff\xd9" in last + piece:
            return True
        last = piece[-1:]
    return False


def _boxes_end(file: BinaryIO, size: int) -> bool | None:
    """Follow the length-prefixed boxes and check whether the last one is complete."""
    position = 0
    for _ in range(_MAX_PIECES):
        file.seek(position)
        length, name = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        # Length 0 means up to the end of the file, wherever that is; and data after the last box is not a box.
        if length < 8 or len(name) < 4 or not name.isascii():
            return None
        position += length
        if position >= size:
            return position == size
    return None


def extension(mime_type: str) -> str:
    """Return the file extension for a content type: ``jpg`` for ``image/jpeg``, ``bin`` for an unknown one."""
    return EXTENSIONS.get(mime_type, "bin")
