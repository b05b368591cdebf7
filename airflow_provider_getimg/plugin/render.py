# SPDX-License-Identifier: Apache-2.0
"""Renders HTML, with everything escaped that is not from the templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from fastapi import Request

_HEADERS = {
    # Nothing from other origins, and no inline scripts or styles.
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "Cache-Control": "private, no-store",
}


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page; its templates link with ``root``, which begins with Airflow's path prefix, if it has one."""
    root = request.scope.get("root_path", "")
    html = (
        _environment()
        .get_template(template)
        .render(root=root, airflow=root.removesuffix("/getimg") + "/", status=status, **values)
    )
    # Text from elsewhere may contain a lone surrogate.
    return HTMLResponse(html.encode(errors="replace"), status_code=status, headers=_HEADERS)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"query": urlencode, "size": _size, "usd": _usd, "amount": _amount}
    return environment


def _size(number: int) -> str:
    if number < 1_000_000:
        return f"{number / 1000:.0f} kB"
    return f"{number / 1_000_000:.1f} MB"


def _usd(cost: float) -> str:
    return f"{_amount(cost)} USD"


def _amount(usd: float) -> str:
    # Not 0.00, which would suggest that it was free.
    if 0 < usd < 0.0001:
        return "under 0.0001"
    return f"{usd:.4f}".removesuffix("00")
