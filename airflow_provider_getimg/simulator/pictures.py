# SPDX-License-Identifier: Apache-2.0
"""Pictures that show their prompt: a landscape in colors derived from it, with the prompt written on top.

The same input always gives the same bytes, so that a file can be redrawn instead of stored.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
import random
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFilter, ImageFont

Colour = tuple[int, int, int]

# A resolution label stands for the pixel area of a square with this side.
SIDES = {"1K": 1024, "2K": 2048, "4K": 4096}
# The landscape is drawn at this size, then scaled: smoother edges when small, and no slower when large.
CANVAS_AREA = 1_600_000
MIN_TEXT, MAX_TEXT = 0.018, 0.085
TEXT_BOX = 0.46
# Pillow's own font covers little more than ASCII: any other prompt gets the first of these that is installed.
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
)
SAVE_OPTIONS: dict[str, dict[str, int]] = {
    "jpeg": {"quality": 88},
    "png": {"compress_level": 1},
    "webp": {"quality": 84, "method": 1},
    "gif": {},
}


@dataclass(frozen=True)
class Picture:
    """A picture to draw."""

    prompt: str
    caption: str
    width: int
    height: int
    output_format: str

    @property
    def mime_type(self) -> str:
        """The file's MIME type."""
        return f"image/{self.output_format}"

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that describe it in a response."""
        return {"width": self.width, "height": self.height}

    def encode(self) -> bytes:
        """Draw and encode it."""
        return draw(self)


def dimensions(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """Return width and height in pixels: multiples of 16, with about the area that the resolution stands for."""
    across, down = (int(number) for number in aspect_ratio.split(":"))
    side = SIDES[resolution]
    return (
        round(side * math.sqrt(across / down) / 16) * 16,
        round(side * math.sqrt(down / across) / 16) * 16,
    )


def draw(picture: Picture) -> bytes:
    """Draw the picture and encode it."""
    image = landscape(picture).resize((picture.width, picture.height), Image.Resampling.BICUBIC)
    image = _write(image, picture)
    encoded = io.BytesIO()
    image.save(encoded, picture.output_format.upper(), **SAVE_OPTIONS[picture.output_format])
    return encoded.getvalue()


def landscape(picture: Picture) -> Image.Image:
    """Draw the background of the text."""
    chance = random.Random(hashlib.sha256(picture.prompt.encode()).digest())
    scale = math.sqrt(CANVAS_AREA / (picture.width * picture.height))
    width, height = round(picture.width * scale), round(picture.height * scale)
    # From teal through blue, violet and red to orange: a yellow or green sky looks sickly.
    hue = chance.uniform(0.45, 1.08)
    swing = chance.choice((-1, 1)) * chance.uniform(0.08, 0.3)
    image = _sky(width, height, hue, swing, chance)
    _sun(image, hue, swing, chance)
    _ridges(image, hue, swing, chance)
    return image


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _sky(width: int, height: int, hue: float, swing: float, chance: random.Random) -> Image.Image:
    # A few colored pixels, enlarged: clouds of color at almost no cost.
    columns, rows = 5, 4
    seeds = Image.new("RGB", (columns, rows))
    for row in range(rows):
        for column in range(columns):
            depth = row / (rows - 1)
            tint = hue + swing * depth + chance.uniform(-0.05, 0.05)
            colour = _colour(tint, 0.72 - 0.37 * depth + chance.uniform(-0.1, 0.1), 0.5 + 0.5 * depth)
            seeds.putpixel((column, row), colour)
    return seeds.resize((width, height), Image.Resampling.BICUBIC)


def _sun(image: Image.Image, hue: float, swing: float, chance: random.Random) -> None:
    width, height = image.size
    radius = min(width, height) * chance.uniform(0.09, 0.17)
    x, y = width * chance.uniform(0.15, 0.85), radius * 1.2 + height * chance.uniform(0, 0.14)
    colour = _colour(hue + swing * 1.3, 0.14, 1.0)
    # Blur the glow at an eighth of the size, where it costs almost nothing.
    glow = Image.new("L", (width // 8, height // 8))
    box = [(edge + sign * radius * 1.5) / 8 for sign in (-1, 1) for edge in (x, y)]
    ImageDraw.Draw(glow).ellipse(box, fill=150)
    glow = glow.filter(ImageFilter.GaussianBlur(radius / 12)).resize(image.size, Image.Resampling.BICUBIC)
    image.paste(colour, (0, 0), glow)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _ridges(image: Image.Image, hue: float, swing: float, chance: random.Random) -> None:
    width, height = image.size
    pen = ImageDraw.Draw(image)
    count = chance.randint(4, 6)
    step = max(2, width // 240)
    for layer in range(count):
        depth = (layer + 1) / count
        base = height * (0.36 + 0.44 * layer / count)
        waves = [
            (
                chance.uniform(0.5, 1.0) / frequency,
                frequency * chance.uniform(0.7, 1.3),
                chance.uniform(0, 6.28),
            )
            for frequency in (1.5, 3.5, 8.0, 19.0)
        ]
        reach = height * 0.085 * (1.25 - 0.5 * depth)
        outline = [
            (
                x,
                base
                - reach
                * sum(size * math.sin(turns * 6.28 * x / width + phase) for size, turns, phase in waves),
            )
            for x in range(0, width + step, step)
        ]
        colour = _colour(hue + swing * (1 - depth) * 0.8, 0.38 + 0.34 * depth, 0.86 - 0.66 * depth)
        pen.polygon([(0, height), *outline, (width, height)], fill=colour)


def _write(image: Image.Image, picture: Picture) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    margin = round(short * 0.06)
    font, lines = _fit(picture.prompt, width - 2 * margin, round(height * TEXT_BOX), short)
    small = _font(max(9, round(short * MIN_TEXT)))
    line_height = _line_height(font)
    bottom = height - margin - 2 * _line_height(small)
    top = bottom - line_height * len(lines)
    _shade(image, round(top - margin * 1.5))
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((margin, top + number * line_height), line, font=font, fill=(255, 255, 255))
    pen.text(
        (margin, height - margin - _line_height(small)),
        picture.caption,
        font=small,
        fill=(214, 214, 222),
    )
    return image


def _shade(image: Image.Image, top: int) -> None:
    """Darken the picture toward its lower edge, so that white text is readable on any color."""
    width, height = image.size
    depth = max(1, height - max(0, top))
    ramp = Image.new("L", (1, 64))
    for row in range(64):
        ramp.putpixel((0, row), round(190 * min(1.0, row / 20)))
    image.paste((10, 10, 22), (0, height - depth), ramp.resize((width, depth), Image.Resampling.BILINEAR))


def _fit(prompt: str, width: int, height: int, short: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """Return the largest font in which the prompt fits the box, and its lines; text that can't fit is cut off."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in prompt).strip()
    wide = not text.isascii()
    if wide and _font(12, wide=True) is _font(12):
        # No such font is installed: an unaccented letter is easier to read than a box.
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    low, high = max(9, round(short * MIN_TEXT)), max(10, round(short * MAX_TEXT))
    while low < high:
        middle = (low + high + 1) // 2
        font = _font(middle, wide)
        if len(_wrap(text, font, width)) * _line_height(font) <= height:
            low = middle
        else:
            high = middle - 1
    font = _font(low, wide)
    lines = _wrap(text, font, width)
    room = max(1, height // _line_height(font))
    if len(lines) > room:
        lines = [*lines[: room - 1], lines[room - 1][:-1].rstrip() + "…"]
    return font, lines


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    space = _advance(" ", font)
    lines = []
    for paragraph in text.split("\n"):
        line, used = "", 0.0
        for word in paragraph.split():
            for piece in _pieces(word, font, width):
                needed = _width(piece, font)
                if not line:
                    line, used = piece, needed
                elif used + space + needed <= width:
                    line, used = f"{line} {piece}", used + space + needed
                else:
                    lines.append(line)
                    line, used = piece, needed
        lines.append(line)
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a word that is wider than a line: a script without spaces may break anywhere."""
    pieces, start, used = [], 0, 0.0
    for position, character in enumerate(word):
        used += _advance(character, font)
        if used > width and position > start:
            pieces.append(word[start:position])
            start, used = position, _advance(character, font)
    return [*pieces, word[start:]]


def _width(text: str, font: ImageFont.FreeTypeFont) -> float:
    # Summed per character and cached: a long prompt is measured at many sizes.
    return sum(_advance(character, font) for character in text)


@lru_cache(maxsize=65536)
def _advance(character: str, font: ImageFont.FreeTypeFont) -> float:
    return font.getlength(character)


@lru_cache(maxsize=64)
def _font(size: int, wide: bool = False) -> ImageFont.FreeTypeFont:
    for name in WIDE_FONTS if wide else ():
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    if wide:
        return _font(size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, which the simulator writes with")
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.3)
