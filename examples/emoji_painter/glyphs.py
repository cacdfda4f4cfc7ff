"""The emoji of the Noto Color Emoji font as pictures with transparency."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.emoji_painter.objects import Thing

FONT_SETTING = "EMOJI_FONT"
PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",  # Fedora
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
)
BITMAP_SIZE = 109  # the only size the font has bitmaps in; they are 136 x 128
FAINT = 40  # opacity of the stray lines beside some of them


def find_font() -> Path:
    """Return the font's file: the one that the environment's EMOJI_FONT names, or that of a usual place.

    Raises:
        SystemExit: there is none; the message says how to install it.
    """
    named = os.environ.get(FONT_SETTING)
    for place in (named,) if named else PLACES:
        path = Path(place).expanduser()
        if path.is_file():
            return path
    raise SystemExit(
        f"No emoji font {f'at {named}' if named else 'in the usual places'}. "
        f"Install it with `apt-get install fonts-noto-color-emoji`, or let {FONT_SETTING} name its file."
    )


@cache
def glyph(thing: Thing) -> Image.Image:
    """Return an object as an RGBA picture, cut to what is drawn, at most 136 x 128.

    Raises:
        SystemExit: there is no font.
        ValueError: the font does not have this emoji.
    """
    picture = Image.new("RGBA", (136, 128))
    font = _font(find_font())
    ImageDraw.Draw(picture).text((0, 0), thing.char.rstrip("\ufe0f"), font=font, embedded_color=True)
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT)).getbbox()
    if box is None:
        raise ValueError(f"the font has no picture of {thing.char} ({thing.en})")
    picture = picture.crop(box)
    return _yellow(picture) if thing.tint else picture


def sized(thing: Thing, size: int) -> Image.Image:
    """Return an object with its longer side of ``size`` pixels."""
    picture = glyph(thing)
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Colours are weighted by opacity, or edges would take on the colour of what is transparent.
    return picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")


def _yellow(picture: Image.Image) -> Image.Image:
    """Make what is red yellow, and leave the rest."""
    pixels = np.asarray(picture).astype(np.float32)
    red, green = pixels[..., 0], pixels[..., 1]
    is_red = red > 1.3 * green
    bright = np.minimum(255, 60 + 0.85 * red)
    yellow = np.stack([bright, 0.82 * bright, 0.2 * bright, pixels[..., 3]], axis=-1)
    return Image.fromarray(np.where(is_red[..., None], yellow, pixels).astype(np.uint8), "RGBA")


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), BITMAP_SIZE)
