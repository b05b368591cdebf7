# SPDX-License-Identifier: Apache-2.0
"""Object keys: templates with placeholders, and the rules for valid keys."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_getimg.api.errors import InvalidInputError
from airflow_provider_getimg.api.quote import quote
from airflow_provider_getimg.s3.uris import bucket_and_key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: S3's limit for a key, in bytes of UTF-8.
KEY_MAX_BYTES = 1024

#: The placeholders that every file of a generation fills in.
PLACEHOLDERS = ("generation_id", "index", "extension", "model", "width", "height", "sha256")

_MAX_NAMES_SHOWN = 30
# The maximum width and precision of a format: Python would build a text of any size.
_FORMAT_MAX = 255
_FORMAT_MAX_CHARACTERS = 32
# A value that only the response has is cut to this length in a key.
_VALUE_MAX_CHARACTERS = 128
# A longer text after a dot is not an extension.
_EXTENSION_MAX_CHARACTERS = 16
# arn:partition:service:region:account:accesspoint:name
_ARN_COLONS = 6

# C0, DEL, C1, line separators, bidirectional controls, and characters that XML, and so a listing, can't carry.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]"
)
_SEPARATOR = re.compile(r"[/\\]")


class _Unknown(str):
    """An unknown value, which ignores its format."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return str(self)


#: Replaces in a key a value that the response does not give, whatever the format.
UNKNOWN = _Unknown("unknown")


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """
    Where objects go in S3: a bucket, and a key whose placeholders are filled in for each object.

    :param bucket: The bucket.
    :param names: The placeholders in the key.
    """

    bucket: str
    names: frozenset[str]
    # Literal text, then the name and the format of the placeholder that follows it, if any.
    _parts: tuple[tuple[str, str | None, str], ...]

    @classmethod
    def parse(cls, s3_key: object, s3_bucket: object) -> Self:
        """
        Parse a template.

        :param s3_key: A key with placeholders, or a full ``s3://bucket/key``.
        :param s3_bucket: The bucket if ``s3_key`` is not a full URI; None or empty otherwise.
        :raises InvalidInputError: They don't name an object, or a placeholder is invalid.
        """
        bucket, text = _bucket_and_key(s3_key, s3_bucket)
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError:
            raise InvalidInputError(
                f"s3_key must write placeholders as {{name}}, and literal braces as {{{{ and }}}}, got {quote(text)}."
            ) from None
        parts = []
        for literal, name, spec, conversion in parsed:
            if name is not None:
                _check_placeholder(name, spec or "", conversion)
            parts.append((literal, name, spec or ""))
        return cls(bucket, frozenset(name for _, name, _ in parts if name is not None), tuple(parts))

    def check_names(self, allowed: Collection[str]) -> None:
        """
        Check that all placeholders are known.

        :raises InvalidInputError: One is unknown.
        """
        unknown = sorted(self.names - set(allowed))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in list(allowed)[:_MAX_NAMES_SHOWN])
            raise InvalidInputError(
                f"s3_key has the unknown placeholder {quote(f'{{{unknown[0]}}}')}. Known placeholders: {known}."
            )

    def render(self, values: Mapping[str, Any]) -> str:
        """
        Return the key with its placeholders filled in.

        :param values: A text or a number for each placeholder; extra values are ignored.
        :raises InvalidInputError: A value is missing or does not fit its format, or the result is not a valid key.
        """
        texts = []
        for literal, name, spec in self._parts:
            texts.append(literal)
            if name is None:
                continue
            value = values.get(name)
            if value is None:
                raise InvalidInputError(f"s3_key has {{{name}}}, which has no value.")
            try:
                texts.append(format(value, spec))
            except (ValueError, TypeError, ArithmeticError):
                raise InvalidInputError(
                    f"s3_key has {{{name}{spec and ':'}{spec}}}, which can't format {quote(value)}."
                ) from None
        key = "".join(texts)
        check_key(key)
        return key

    @property
    def shared_folder(self) -> str:
        """The folder that all its keys share, without a trailing slash; empty if there is none."""
        fixed = ""
        for literal, name, _ in self._parts:
            fixed += literal
            if name is not None:
                break
        return fixed.rpartition("/")[0]


def check_key(key: str, source: str = "s3_key") -> None:
    """
    Check that a finished key is valid for S3, and safe for what people do with keys afterwards.

    :param source: The parameter that it comes from.
    :raises InvalidInputError: It is not.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{source} gives the key {quote(key)}, which can't be encoded as UTF-8."
        ) from None
    if size > KEY_MAX_BYTES:
        raise InvalidInputError(
            f"{source} gives a key of {size} bytes ({quote(key)}): S3 allows at most {KEY_MAX_BYTES}."
        )
    if not key or key.endswith("/"):
        raise InvalidInputError(f"{source} gives the key {quote(key)}, which names a folder, not an object.")
    if {".", ".."} & set(key.split("/")):
        raise InvalidInputError(
            f"{source} gives the key {quote(key)}: no part of a key between slashes may be '.' or '..'."
        )
    if _CONTROL.search(key):
        raise InvalidInputError(f"{source} gives the key {quote(key)}, which contains control characters.")


def clean_value(value: object) -> str:
    """
    Make a response's value safe as part of a key: it can neither create a folder nor make the key invalid.

    By then it is too late to refuse it: the file is paid for.
    """
    text = "" if value is None else str(value)
    text = _SEPARATOR.sub("-", _CONTROL.sub("-", text))[:_VALUE_MAX_CHARACTERS]
    if not text.strip():
        return "unknown"
    return "-" if text in (".", "..") else text


def numbered(key: str, index: int) -> str:
    """Return a key with ``-{index}`` before its extension, for files that would otherwise share it."""
    stem, dot, suffix = key.rpartition(".")
    if not dot or "/" in suffix or len(suffix) > _EXTENSION_MAX_CHARACTERS or stem.rpartition("/")[2] == "":
        stem, dot, suffix = key, "", ""
    end = f"-{index}{dot}{suffix}"
    # If there is no room for the number, the key is shortened.
    return stem.encode()[: KEY_MAX_BYTES - len(end.encode())].decode(errors="ignore") + end


def _bucket_and_key(s3_key: object, s3_bucket: object) -> tuple[str, str]:
    if not isinstance(s3_key, str) or not s3_key.strip():
        raise InvalidInputError(
            "s3_key must be a key or a full s3://bucket/key, such as 'images/{generation_id}-{index}.{extension}', got "
            f"{quote(s3_key)}."
        )
    if not s3_key.startswith("s3://"):
        bucket, key = str(s3_bucket or ""), s3_key
    elif s3_bucket:
        raise InvalidInputError(
            f"s3_bucket must be left out where s3_key names the bucket itself ({quote(s3_key)}), got {quote(s3_bucket)}."
        )
    else:
        bucket, key = bucket_and_key(s3_key)
    if bucket.startswith("arn:"):
        # Both separators mean the same to S3, but s3://bucket/key ends a bucket at its first slash.
        bucket = bucket.replace("/", ":")
        if bucket.count(":") < _ARN_COLONS:
            raise InvalidInputError(
                f"An access point's ARN must end with a colon and its name, got {quote(s3_key)} and s3_bucket {quote(s3_bucket)}."
            )
    if not bucket or "/" in bucket or not key or key.endswith("/") or "None" in (bucket, key):
        raise InvalidInputError(
            "s3_bucket and s3_key must name a bucket and an object, or s3_key alone a full s3://bucket/key, got s3_key "
            f"{quote(s3_key)} and s3_bucket {quote(s3_bucket)}."
        )
    return bucket, key


def _check_placeholder(name: str, spec: str, conversion: str | None) -> None:
    written = f"{{{name}{f'!{conversion}' if conversion else ''}{spec and ':'}{spec}}}"
    # A format such as {index:03d} is fine; access into a value, or a nested placeholder, is not.
    if conversion or "." in name or "[" in name or "{" in spec:
        raise InvalidInputError(
            f"A placeholder of s3_key must be a name, with at most a format such as {{index:03d}}, got {quote(written)}."
        )
    if name == "sha256" and spec:
        raise InvalidInputError(f"{{sha256}} in s3_key must have no format, got {quote(written)}.")
    # In a short format, the numbers are few and short enough for int().
    if len(spec) > _FORMAT_MAX_CHARACTERS or any(
        int(number) > _FORMAT_MAX for number in re.findall(r"\d+", spec)
    ):
        raise InvalidInputError(
            f"A format in s3_key must be short, and give at most {_FORMAT_MAX} characters, got {quote(written)}."
        )
