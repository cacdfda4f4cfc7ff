"""Open pictures that come from anywhere: damaged, huge, or no files at all."""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from PIL import Image

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
    """Read a picture completely.

    Raises:
        InvalidRequest: it is no picture, damaged, or of more than 64 million pixels.
        OSError: it cannot be read.
    """
    with open_file(path) as stream:
        return read_picture(stream, printable(path, 300))


def read_picture(stream: BinaryIO, name: str) -> Image.Image:
    """Read a picture completely from an open file, whose name is for messages.

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
        return image
