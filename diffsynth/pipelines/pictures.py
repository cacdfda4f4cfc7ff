"""Open pictures that come from anywhere, damaged, huge or no files at all, and bring them to colours of 8 bits."""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from diffsynth.errors import InvalidRequest, printable

MOST_PIXELS = 64_000_000

# What Pillow and json raise for damaged content, besides OSError.
DAMAGED = (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError, struct.error,
           zlib.error, Image.DecompressionBombError)  # fmt: skip


def open_file(path: str | PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe or a device.

    Raises:
        InvalidRequest: it is something else.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise InvalidRequest(f"{printable(path, 300)} is not a regular file; give the path of a picture.")
    return path.open("rb")


def open_picture(path: str | PathLike[str]) -> Image.Image:
    """Read a picture completely, and turn it upright if it was taken with a turned camera.

    Raises:
        InvalidRequest: it is no picture, damaged, or of more than 64 million pixels.
        OSError: it cannot be read.
    """
    with open_file(path) as stream:
        return read_picture(stream, printable(path, 300))


def read_picture(stream: BinaryIO, name: str) -> Image.Image:
    """Do what ``open_picture`` does with an open file, whose name is for messages.

    Raises:
        InvalidRequest: it is no picture, damaged, or of more than 64 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{name} has too many pixels; at most {MOST_PIXELS:,} are read.") from error
    except (OSError, *DAMAGED) as error:
        raise InvalidRequest(f"{name} is not a picture that Pillow can read.") from error
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise InvalidRequest(f"{name} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read.")
        try:
            image.load()
        except (OSError, *DAMAGED) as error:
            raise InvalidRequest(f"{name} is a damaged picture: {printable(error, 200)}.") from error
        with suppress(OSError, *DAMAGED):  # of what a camera wrote beside the picture
            ImageOps.exif_transpose(image, in_place=True)
        return image


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode but I and F, whose white nobody knows, in RGB; transparency is laid on white."""
    image = eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits, such as a depth map, brought to 8, and any other as it is."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
