# SPDX-License-Identifier: Apache-2.0
"""The settings, given at startup or changed at run time: names, units and bounds, defined once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_getimg.simulator.errors import must_be

if TYPE_CHECKING:
    from collections.abc import Mapping

Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400)]
Count = Annotated[int, Field(ge=0, le=2**53)]
# A real account, as published by one of its users in July 2026. Limits differ by account.
PRESETS: dict[str | None, dict[str, float]] = {
    None: {},
    "account": {"latency": 25.0, "max_latency": 35.0, "rpm": 20, "concurrency": 5},
}


class Settings(BaseModel):
    """The behavior of the simulator. Its seconds are the API's, which ``time_scale`` makes shorter than real ones."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    latency: Seconds = Field(0.0, description="how long an image takes to make")
    max_latency: Seconds = Field(
        0.0, description="with it, an image takes a random time from the latency to this"
    )
    video_latency: Seconds = Field(1.0, description="how long a video is pending")
    download_latency: Seconds = Field(0.0, description="how long a download waits before it responds")
    rpm: Count = Field(0, description="generation requests per minute; 0 means no limit")
    concurrency: Count = Field(
        0, description="generation requests and pending videos at a time; 0 means no limit"
    )
    media_lifetime: Seconds = Field(86400.0, description="how long a file can be downloaded")
    file_size: Count = Field(
        0, description="bytes that every file is padded to, for load tests; 0 means no padding"
    )
    time_scale: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="how many times as fast all these times pass, including the minute of --rpm"
    )

    def real(self, seconds: float) -> float:
        """Convert the API's seconds to real ones."""
        return seconds / self.time_scale

    def image_seconds(self) -> float:
        """Return the real seconds that the next image takes to make."""
        return self.real(random.uniform(self.latency, max(self.latency, self.max_latency)))

    def change(self, changes: Mapping[str, object], *, texts: bool = False) -> None:
        """Change all of the given settings, or none of them.

        :param changes: Values by name. They override those of a ``preset`` among them.
        :param texts: Whether the values are strings to parse.
        :raises ValueError: A name or a value is invalid; the message is one sentence.
        """
        try:
            checked = Changes.model_validate(dict(changes), strict=not texts)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "extra_forbidden":
                names = ", ".join(sorted(Changes.model_fields))
                raise ValueError(f"there is no setting {first['loc'][0]!r}: there are {names}") from None
            raise ValueError(must_be(str(first["loc"][0]), first)) from None
        given: dict[str, Any] = checked.model_dump(exclude_unset=True, exclude={"preset"})
        for name, value in {**PRESETS[checked.preset], **given}.items():
            setattr(self, name, value)


class Changes(Settings):
    """Settings to change, individually or several at once by the name of a preset."""

    preset: Literal["account"] | None = Field(
        None, description="'account': the limits and latency of a real account"
    )
