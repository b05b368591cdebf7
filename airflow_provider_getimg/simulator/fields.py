# SPDX-License-Identifier: Apache-2.0
"""Validation shared by image and video requests: from the bytes of a POST to checked fields, or to a refusal."""

from __future__ import annotations

import binascii
import ipaddress
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_getimg.simulator.catalogue import MODELS
from airflow_provider_getimg.simulator.errors import ApiError, invalid, missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_getimg.simulator.catalogue import Model

MAX_BODY = 25 * 1024 * 1024
MAX_IMAGE = 10 * 1024 * 1024
MAX_IMAGES = 8
MAX_PROMPT = 4096
DEFAULT_ROLE = "reference_image"
DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE)
BLOCKED_WORDS = ("beheading", "gore", "nsfw", "nude", "torture")


def parse(body: bytes) -> dict[str, Any]:
    """Parse the body as a JSON object."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid(None, "The request body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise invalid(None, "The request body must be a JSON object.")
    return fields


def read_model(fields: dict[str, Any], kind: str) -> Model:
    """Return the model, or refuse one that is unknown or of another type."""
    model_id = read_text(fields, "model")
    model = MODELS.get(model_id)
    if model is None:
        raise invalid("model", f"Unsupported model '{model_id}'.")
    if model.type != kind:
        raise invalid("model", f"Model '{model_id}' makes {model.type}s, not {kind}s.")
    return model


def refuse_unknown(fields: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse unknown fields."""
    for name in fields:
        if name not in known:
            raise invalid(name, f"Unknown parameter: '{name}'.")


def read_prompt(fields: dict[str, Any]) -> str:
    """Return the prompt, or refuse it."""
    prompt = read_text(fields, "prompt")
    if not 1 <= len(prompt) <= MAX_PROMPT:
        raise invalid("prompt", f"'prompt' must have 1 to {MAX_PROMPT} characters, not {len(prompt)}.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise invalid("prompt", "'prompt' must be valid Unicode: it holds half of a surrogate pair.")
    return prompt


def read_text(fields: dict[str, Any], name: str) -> str:
    """Return a required string; refuse a missing field or another type."""
    if name not in fields:
        raise missing(name)
    value = fields[name]
    if not isinstance(value, str):
        raise invalid(name, f"'{name}' must be a string.")
    return value


def read_choice(fields: dict[str, Any], name: str, choices: tuple[str, ...], where: str) -> str:
    """Return one of the choices, by default the first; refuse any other value."""
    if name not in fields:
        return choices[0]
    value = read_text(fields, name)
    if value not in choices:
        raise invalid(name, f"Unsupported {name.replace('_', ' ')} '{value}'{where}.")
    return value


def read_references(images: object, model: Model) -> list[str]:
    """Return the URLs of the references, or refuse those that the model does not accept."""
    if not isinstance(images, list):
        raise invalid("images", "'images' must be an array.")
    if len(images) > MAX_IMAGES:
        raise invalid("images", f"'images' may hold at most {MAX_IMAGES} images, not {len(images)}.")
    roles: Counter[str] = Counter()
    urls = []
    for index, image in enumerate(images):
        where = f"images[{index}]"
        if not isinstance(image, dict):
            raise invalid(where, f"'{where}' must be an object with 'url' and 'role'.")
        if "url" not in image:
            raise missing(f"{where}.url")
        for name in image:
            if name not in ("url", "role"):
                raise invalid(f"{where}.{name}", f"Unknown parameter: '{where}.{name}'.")
        # The vendor's docs require a role, its published client can't send one, and its server accepts both.
        role = image.get("role", DEFAULT_ROLE)
        if not isinstance(role, str) or role not in model.references:
            raise invalid(f"{where}.role", f"Unsupported role '{role}' for model '{model.id}'.")
        roles[role] += 1
        if roles[role] > model.references[role]:
            limit = model.references[role]
            raise invalid(
                "images", f"Model '{model.id}' takes at most {limit} images with the role '{role}'."
            )
        urls.append(_reference_url(image["url"], f"{where}.url"))
    return urls


def _reference_url(url: object, where: str) -> str:
    if not isinstance(url, str):
        raise invalid(where, f"'{where}' must be a string.")
    if url[:5].lower() == "data:":
        _check_data_url(url, where)
        return ""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname
    except ValueError:
        scheme, host = "", None
    if not host or not (scheme == "https" or (scheme == "http" and _is_loopback(host))):
        raise invalid(where, f"'{where}' must be an HTTPS URL or a data URL; bare base64 is not accepted.")
    return url


def _check_data_url(url: str, where: str) -> None:
    start = DATA_URL.match(url)
    if start is None:
        raise invalid(where, f"'{where}' must be base64 data of type image/png, image/jpeg or image/webp.")
    # Check the encoded length first, so that a huge one is never decoded.
    if (len(url) - start.end()) * 3 // 4 - 2 > MAX_IMAGE:
        raise invalid(where, f"'{where}' is larger than {MAX_IMAGE // 2**20} MiB once decoded.")
    try:
        size = len(binascii.a2b_base64(url[start.end() :], strict_mode=True))
    except ValueError:
        raise invalid(where, f"'{where}' is not valid base64.") from None
    if size == 0:
        raise invalid(where, f"'{where}' holds no data.")
    if size > MAX_IMAGE:
        raise invalid(where, f"'{where}' is larger than {MAX_IMAGE // 2**20} MiB once decoded.")


def _is_loopback(host: str) -> bool:
    # The simulator's own downloads are plain HTTP on loopback, and should work as references.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_unsafe(prompt: str, urls: list[str], blocked_words: Iterable[str]) -> None:
    """Refuse what the content policy forbids."""
    blocked = {word.casefold() for word in blocked_words}
    if blocked & _words(prompt):
        raise ApiError(422, "The prompt was refused by the content policy.", param="prompt")
    for index, url in enumerate(urls):
        if blocked & _words(url):
            message = "The reference image was refused by the content policy."
            raise ApiError(422, message, param=f"images[{index}].url")


def _words(text: str) -> set[str]:
    # \w counts an underscore as a letter, but in a file name it is a separator.
    return set(re.findall(r"[^\W_]+", text.casefold()))
