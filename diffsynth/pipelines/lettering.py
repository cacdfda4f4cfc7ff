"""Words on pictures: a font that has the characters, and lines that are broken where they may be."""

from __future__ import annotations

import logging
import os
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import ImageDraw, ImageFont

from diffsynth.errors import InvalidRequest, printable

logger = logging.getLogger(__name__)

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_SETTING = "DIFFSYNTH_FONT"
# What systems have, by name; Pillow knows their folders. The font inside Pillow has little more than ASCII.
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
         "Hiragino Sans GB.ttc", "STHeiti Medium.ttc", "msyh.ttc", "simsun.ttc", "DejaVuSans.ttf", "arial.ttf",
         "Arial Unicode.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf")  # fmt: skip
NOBODYS = "\U0010ffff"  # a character that no font has
WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"  # Chinese, Japanese, Korean: lines break at any of them
PARTS = re.compile(rf"[{WIDE}]|[^\s{WIDE}]+|\s+")


class Lettering:
    """Writes text of one size.

    Args:
        size: of letters, in pixels.
        font: a file to write everything with; else the one that the environment's DIFFSYNTH_FONT names, else of those
            that the system has the first with all characters of a text.

    Raises:
        InvalidRequest: the file is no font.
    """

    def __init__(self, size: int, font: Path | None = None) -> None:
        self.size = size
        self.line = round(size * 1.35)
        named = font or (Path(os.environ[FONT_SETTING]) if os.environ.get(FONT_SETTING) else None)
        self._named = _opened(named, size) if named else None

    @cached_property
    def _fonts(self) -> list[Font]:
        """The fonts there are, in the order in which they are asked."""
        if self._named is not None:
            return [self._named]
        return [ImageFont.load_default(self.size), *_of_the_system(self.size)]

    def can_show(self, text: str) -> bool:
        """Whether one font has every character of a text."""
        return not _lacks(self._font(text), text)

    def width(self, text: str) -> float:
        """Return the width of a line, in pixels."""
        return self._font(text).getlength(text)

    def lines(self, text: str, width: float, most: int | None = None) -> list[str]:
        """Break a text into lines, between words or Chinese characters, and inside words that are too long.

        Args:
            text: white space of any kind counts as a space.
            width: of a line, in pixels.
            most: lines; what is left over becomes an ellipsis.
        """
        rows = [""]
        for part in PARTS.findall(" ".join(text.split())):
            if rows[-1] and self.width(rows[-1] + part) > width:
                rows[-1] = rows[-1].rstrip()
                rows.append("")
                part = part.lstrip()
            while len(part) > 1 and self.width(part) > width:
                kept = next(
                    count for count in range(len(part) - 1, 0, -1) if count == 1 or self.width(part[:count]) <= width
                )
                rows[-1:] = [part[:kept], ""]
                part = part[kept:]
            rows[-1] += part
        if most is not None and len(rows) > most:
            last = rows[most - 1]
            while last and self.width(f"{last}...") > width:
                last = last[:-1]
            rows = [*rows[: most - 1], f"{last}..."]
        return rows

    def write(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str) -> None:
        """Write a line; ``place`` is its upper left corner."""
        font = self._font(text)
        if missing := _lacks(font, text):
            _warn(missing)
        draw.text(place, text, fill=fill, font=font)

    def _font(self, text: str) -> Font:
        """Return the first font that has all characters, else the one that lacks the fewest."""
        if text.isascii():
            return self._named or ImageFont.load_default(self.size)
        return min(self._fonts, key=lambda font: len(_lacks(font, text)))


@lru_cache(maxsize=1)
def _warn(missing: str) -> None:
    logger.warning(
        "no font with %s was found, so boxes stand for it; install one (Noto Sans CJK, say), or let %s name its file",
        printable(missing, 40), FONT_SETTING,
    )  # fmt: skip


def _opened(path: Path, size: int) -> Font:
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise InvalidRequest(f"{printable(path, 300)} is not a font that can be read: {printable(error)}.") from error


@lru_cache(maxsize=8)
def _of_the_system(size: int) -> list[Font]:
    found: list[Font] = []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


def _lacks(font: Font, text: str) -> str:
    """Return the characters of a text that a font does not have, each once."""
    return "".join(char for char in dict.fromkeys(text) if not char.isspace() and not _has(font, char))


@lru_cache(maxsize=20_000)
def _has(font: Font, char: str) -> bool:
    drawn, missing = font.getmask(char), font.getmask(NOBODYS)
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
