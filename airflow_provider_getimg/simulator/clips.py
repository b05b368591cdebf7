# SPDX-License-Identifier: Apache-2.0
"""Playable videos: a pan across the prompt's picture, as H.264 in an MP4 file."""

from __future__ import annotations

import io
import math
from array import array
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
from PIL import Image

from airflow_provider_getimg.simulator.pictures import Picture, landscape

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

FRAMES_A_SECOND = 8
SAMPLES_A_SECOND = 48_000
# The scene is this many times as large as the camera's view of it.
ZOOM = 1.25


@dataclass(frozen=True)
class Clip:
    """A clip to film."""

    prompt: str
    width: int
    height: int
    seconds: int
    sound: bool

    @property
    def mime_type(self) -> str:
        """The file's MIME type."""
        return "video/mp4"

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that describe it in a response."""
        return {
            "width": self.width,
            "height": self.height,
            "duration": float(self.seconds),
            "fps": float(FRAMES_A_SECOND),
            "has_sound": self.sound,
        }

    def encode(self) -> bytes:
        """Film and encode it."""
        return _film(self)


def dimensions(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Return width and height in pixels, both even; the resolution is named after the smaller one."""
    across, down = (int(number) for number in aspect_ratio.split(":"))
    side = int(resolution.removesuffix("p"))
    scale = side / min(across, down)
    return round(across * scale / 2) * 2, round(down * scale / 2) * 2


def _film(clip: Clip) -> bytes:
    scene = landscape(Picture(clip.prompt, "", clip.width, clip.height, "png"))
    scene = scene.resize((round(clip.width * ZOOM), round(clip.height * ZOOM)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        video.width, video.height, video.pix_fmt = clip.width, clip.height, "yuv420p"
        video.options = {"preset": "ultrafast", "crf": "30"}
        audio = container.add_stream("aac", rate=SAMPLES_A_SECOND) if clip.sound else None
        frames = clip.seconds * FRAMES_A_SECOND
        for number in range(frames):
            left, top = (
                round((whole - seen) * number / frames)
                for whole, seen in zip(scene.size, (clip.width, clip.height), strict=True)
            )
            view = scene.crop((left, top, left + clip.width, top + clip.height))
            frame = av.VideoFrame.from_image(view)  # type: ignore[no-untyped-call]
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _hum(container, audio, clip)
    return file.getvalue()


def _hum(container: Any, audio: AudioStream, clip: Clip) -> None:
    """Add a tone whose pitch depends on the prompt."""
    pitch = 220 + sum(clip.prompt.encode()) % 220
    size = 1024
    for start in range(0, clip.seconds * SAMPLES_A_SECOND, size):
        wave = array(
            "f",
            (0.1 * math.sin(2 * math.pi * pitch * (start + step) / SAMPLES_A_SECOND) for step in range(size)),
        )
        frame = av.AudioFrame(format="fltp", layout="mono", samples=size)
        frame.planes[0].update(wave.tobytes())
        frame.sample_rate, frame.pts, frame.time_base = SAMPLES_A_SECOND, start, Fraction(1, SAMPLES_A_SECOND)
        container.mux(audio.encode(frame))
    container.mux(audio.encode())
