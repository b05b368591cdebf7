# SPDX-License-Identifier: Apache-2.0
"""The process that waits for videos and measures itself: ``python -m benchmarks.video_worker JOB``.

All triggers run in one event loop, as in Airflow's triggerer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.process import do_job, import_provider

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3600.0


def by_triggers(job: dict[str, Any]) -> Callable[[], object]:
    """Return the work of a ``GetimgVideoTrigger`` for each video."""
    from airflow_provider_getimg.api.video_states import VideoStates
    from airflow_provider_getimg.durable.video_polling import VideoWait
    from airflow_provider_getimg.triggers.video import GetimgVideoTrigger

    import_provider()
    polls: list[float] = []
    get = VideoStates.get

    async def noted(self: VideoStates, video_id: str) -> Any:
        polls.append(time.monotonic() - began)
        return await get(self, video_id)

    VideoStates.get = noted  # type: ignore[method-assign]
    began = time.monotonic()

    def wait_for_all() -> None:
        nonlocal began
        began = time.monotonic()
        now = time.time()
        wait = VideoWait(
            video_id="",
            fingerprint="",
            started=now,
            until=now + HOUR,
            poll_interval=job["poll_interval"],
            record={},
        )
        triggers = [GetimgVideoTrigger({**wait, "video_id": each}, "getimg_default") for each in job["ids"]]

        async def wait_a_while() -> None:
            # Canceled, because each would poll once more at the end of its wait.
            with suppress(TimeoutError):
                async with asyncio.timeout(job["seconds"]):
                    await asyncio.gather(*(anext(trigger.run()) for trigger in triggers))

        asyncio.run(wait_a_while())
        Path(job["polls"]).write_text("\n".join(map(str, polls)))

    return wait_for_all


if __name__ == "__main__":
    do_job({"triggers": by_triggers})
