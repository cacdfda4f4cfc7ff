"""An image → the bytes of a file that holds its recipe and its key, and the key back from a file."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.pictures import DAMAGED
from diffsynth.pipelines.recipe import DESCRIPTION, JSON_CHUNK, Recipe, png_chunks

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
KEY = "key"  # in the JSON of a recipe
EXIF_PART, COMMENT = 0x8769, 0x9286  # tags of EXIF: its own part, and UserComment


def encoded(image: Image.Image, key: str, name: str, quality: int) -> bytes:
    """Return an image as a file, with its recipe: in a PNG as ``save_image`` writes it, else in EXIF.

    Args:
        image: one that a pipeline drew.
        key: of its request, kept beside the recipe, so that the file can be recognised.
        name: its ending says the format.
        quality: 1 to 100, of JPEG and WebP; 100 is WebP without loss.

    Raises:
        InvalidRequest: the recipe does not fit into the format.
    """
    recipe: Recipe = image.info["recipe"]
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    stream = io.BytesIO()
    if kind == "PNG":
        image.save(stream, kind, pnginfo=png_chunks(recipe, **{KEY: key}))
        return stream.getvalue()
    lossless = {"lossless": quality == 100} if kind == "WEBP" else {"subsampling": 0}
    try:
        image.save(stream, kind, quality=quality, exif=_exif(recipe, key), **lossless)
    except ValueError as error:
        raise InvalidRequest(f"the recipe does not fit into a {kind} file ({error}); name the image .png.") from error
    return stream.getvalue()


def _exif(recipe: Recipe, key: str) -> Image.Exif:
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps({**recipe.as_json(), KEY: key})
    exif.get_ifd(EXIF_PART)[COMMENT] = b"UNICODE\0" + recipe.as_text().encode("utf-16-be")
    return exif


def recipe_in(file: Path | BinaryIO) -> dict[str, Any] | None:
    """Return the recipe inside an image that a batch drew, its key included; None for any other or damaged file."""
    with suppress(OSError, *DAMAGED), Image.open(file) as image:
        image.load()
        return recipe_of(image)
    return None


def recipe_of(image: Image.Image) -> dict[str, Any] | None:
    """Return the recipe inside an image of a file, unchecked; None if it has none of ours."""
    with suppress(*DAMAGED):
        recipe = json.loads(image.info.get(JSON_CHUNK) or image.getexif().get(DESCRIPTION) or "")
        if isinstance(recipe, dict):
            return recipe
    return None
