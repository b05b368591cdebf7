# SPDX-License-Identifier: Apache-2.0
"""What can be set when the simulator starts and changed while it runs: names, units and bounds, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WHOLE = ("rpm", "concurrency", "file_size")
MAX_SECONDS = 10 * 365 * 86400
MAX_WHOLE = 2**53


@dataclass
class Settings:
    """The behaviour of the simulator. Seconds may be fractions; 0 means no limit, no delay, no padding.

    :param latency: Seconds that an image takes to make.
    :param download_latency: Seconds before a download answers.
    :param rpm: Generation requests per minute.
    :param concurrency: Generation requests at a time.
    :param media_lifetime: Seconds that a file can be downloaded for. 0: its URL is dead at birth.
    :param file_size: Bytes that every file is padded to.
    """

    latency: float = 0.0
    download_latency: float = 0.0
    rpm: int = 0
    concurrency: int = 0
    media_lifetime: float = 86400.0
    file_size: int = 0

    def change(self, changes: Mapping[str, object]) -> None:
        """Change all of the given settings, or none of them.

        :raises ValueError: With one sentence, where a name or a value is not fit.
        """
        names = {field.name for field in fields(self)}
        for name in changes:
            if name not in names:
                raise ValueError(f"there is no setting {name!r}: there are {', '.join(sorted(names))}")
        changed = replace(self, **{name: check_setting(name, value) for name, value in changes.items()})
        self.__dict__.update(changed.__dict__)

    def public(self) -> dict[str, Any]:
        """Return the settings as ``/_simulator/settings`` shows them."""
        return asdict(self)


def check_setting(name: str, value: object) -> Any:
    """Return the value if it is fit for the setting of this name.

    :raises ValueError: With one sentence, if it is not.
    """
    if name in WHOLE:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WHOLE:
            return value
        raise ValueError(f"{name} must be a whole number from 0, not {value!r}")
    # NaN fails the comparison, and infinity the bound.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)
    raise ValueError(f"{name} must be a number of seconds from 0, not {value!r}")
